"""Processors of models that see and hear, read without torchvision.

transformers' processors of images run on Pillow too, but its way to some of their classes asks for
torchvision, and a processor that also knows videos always does. Videos are not served here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils.hub import PushToHubMixin

from text_svc.torch_models.pretrained import Pretrained


class NoVideos(transformers.BaseVideoProcessor, PushToHubMixin):
    """Stands where a processor of videos is wanted."""

    def __init__(self) -> None:
        """That of the base class raises where there is no torchvision."""

    def to_dict(self) -> dict[str, Any]:
        """Nothing to be saved."""
        return {}


def read_processor(source: Pretrained) -> Any:
    """The processor of a model's folder, on Pillow.

    Raises:
        OSError, ValueError, ImportError: whatever transformers says to files that it cannot use.
    """
    kind = source.read(AutoConfig).model_type
    known: Any = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(kind) or "", None)
    names = known.get_attributes() if known else []
    pillow = (IMAGE_PROCESSOR_MAPPING_NAMES.get(kind) or {}).get("pil")
    shown: Any = getattr(transformers, pillow or "", None)
    images = shown and getattr(import_module(shown.__module__), shown.__name__)
    if "video_processor" not in names and images is shown:
        return source.read(AutoProcessor)
    # SmolVLM demands a package at once that it needs for the times of videos alone.
    vars(processing_smolvlm)["num2words"] = vars(processing_smolvlm)["num2words"] or str
    parts = {
        "image_processor": lambda: source.read(images),
        "feature_extractor": lambda: source.read(AutoFeatureExtractor),
        "tokenizer": lambda: source.read(AutoTokenizer),
        "video_processor": NoVideos,
    }
    settings, _ = known.get_processor_dict(source.folder, local_files_only=True)
    return known.from_args_and_dict([parts[name]() for name in names], settings)
