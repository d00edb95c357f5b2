"""Reads the processors of models that take images and sounds without torchvision.

transformers has image processors on Pillow, but `AutoProcessor` requires torchvision for some of
them, and for every processor that also takes videos, which are not served here. The public API has
no way around that, so this module uses internal ones of transformers: the tables of the auto
classes to find the classes, the mixin that a stand-in for a video processor must have, and a
variable of SmolVLM's module. The pinned version of transformers keeps them where they are.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils.hub import PushToHubMixin

from text_svc.torch_models.pretrained import Pretrained
from text_svc.torch_models.tokenizer import load_tokenizer


class NoVideos(transformers.BaseVideoProcessor, PushToHubMixin):
    """Takes the place of a video processor."""

    def __init__(self) -> None:
        """The base class's own raises without torchvision."""

    def to_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}


def read_processor(source: Pretrained) -> Any:
    """The processor of a model's folder, on Pillow.

    Raises:
        OSError, ValueError, ImportError: transformers cannot read the files.
    """
    model_type = source.read(AutoConfig).model_type
    processor_class: Any = getattr(
        transformers, PROCESSOR_MAPPING_NAMES.get(model_type) or "", None
    )
    names = processor_class.get_attributes() if processor_class else []
    on_pillow = (IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}).get("pil")
    # The package's attribute may be a placeholder that raises; the class itself is in its module.
    public: Any = getattr(transformers, on_pillow or "", None)
    images = public and getattr(import_module(public.__module__), public.__name__)
    if "video_processor" not in names and images is public:
        return source.read(AutoProcessor)
    # SmolVLM's processor requires num2words, which it uses for the times of videos only.
    vars(processing_smolvlm)["num2words"] = vars(processing_smolvlm)["num2words"] or str
    parts = {
        "image_processor": lambda: source.read(images),
        "feature_extractor": lambda: source.read(AutoFeatureExtractor),
        "tokenizer": lambda: load_tokenizer(source.folder),
        "video_processor": NoVideos,
    }
    settings, _ = processor_class.get_processor_dict(source.folder, local_files_only=True)
    return processor_class.from_args_and_dict([parts[name]() for name in names], settings)
