"""Reads the processors of models that take images and sounds without torchvision.

transformers has image processors on Pillow, but `AutoProcessor` requires torchvision for some of
them, and for every processor that also takes videos, which are not served here. The public API has
no way around that, so this module uses internal ones of transformers: the tables of the auto
classes to find the classes, modules that stand in for others, the mixin that a stand-in for a video
processor must have, and a variable of SmolVLM's module. The pinned version of transformers keeps
them where they are.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    AutoImageProcessor,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils.hub import PushToHubMixin

from shared.errors import InvalidModelError
from text_svc.formats.json_files import TOKENIZER_CONFIG, read_json_object
from text_svc.torch_models.pretrained import Pretrained
from text_svc.torch_models.tokenizer import load_tokenizer

# Files that may name the class of a processor, in transformers' own order.
_NAMING_FILES = ("processor_config.json", "preprocessor_config.json", TOKENIZER_CONFIG)
# Processors that need a function of their image processor's module, which imports torchvision; the
# one on Pillow has the same function.
_WITH_OWN_IMAGES = {"PixtralProcessor": "pixtral", "FuyuProcessor": "fuyu"}


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
        InvalidModelError: transformers has the model's image processor for torchvision alone.
        OSError, ValueError, ImportError: transformers cannot read the files.
    """
    model_type = source.read(AutoConfig).model_type
    on_pillow = _image_processor(source, model_type)
    name = _processor_name(source, model_type)
    if name is None:
        return source.read(AutoProcessor)
    processor_class, is_public = _class(name)
    names = processor_class.get_attributes()
    if "image_processor" in names and on_pillow == "":
        raise InvalidModelError(
            f"transformers has the image processor of {model_type} models for torchvision alone, "
            "which is not installed here"
        )
    if "video_processor" not in names and is_public and (not on_pillow or _class(on_pillow)[1]):
        return source.read(AutoProcessor)
    # SmolVLM's processor requires num2words, which it uses for the times of videos only.
    vars(processing_smolvlm)["num2words"] = vars(processing_smolvlm)["num2words"] or str
    parts = {
        "image_processor": lambda: source.read(
            _class(on_pillow)[0] if on_pillow else AutoImageProcessor
        ),
        "feature_extractor": lambda: source.read(AutoFeatureExtractor),
        "tokenizer": lambda: load_tokenizer(source.folder),
        "video_processor": NoVideos,
    }
    settings, _ = processor_class.get_processor_dict(source.folder, local_files_only=True)
    return processor_class.from_args_and_dict([parts[name]() for name in names], settings)


def _processor_name(source: Pretrained, model_type: str) -> str | None:
    """The class of a model's processor, as its files name it or transformers; None if none does."""
    for file in _NAMING_FILES:
        named = read_json_object(source.folder / file).get("processor_class")
        if named in PROCESSOR_MAPPING_NAMES.values():
            return str(named)
    return PROCESSOR_MAPPING_NAMES.get(model_type)


def _image_processor(source: Pretrained, model_type: str) -> str | None:
    """The class on Pillow of a model's image processor; "" if it has one for torchvision alone."""
    content = read_json_object(source.folder / "preprocessor_config.json")
    nested = read_json_object(source.folder / "processor_config.json").get("image_processor")
    named = content.get("image_processor_type")
    if isinstance(nested, dict):
        named = nested.get("image_processor_type", named)
    known = IMAGE_PROCESSOR_MAPPING_NAMES
    own = [each for each in known.values() if str(named).removesuffix("Fast") in each.values()]
    backends = own[0] if own else known.get(model_type)
    return None if backends is None else backends.get("pil", "")


def _class(name: str) -> tuple[Any, bool]:
    """A class of transformers, and whether it is public: others have a placeholder that raises."""
    if family := _WITH_OWN_IMAGES.get(name):
        images = f"transformers.models.{family}.image_processing"
        sys.modules.setdefault(f"{images}_{family}", import_module(f"{images}_pil_{family}"))
    public: Any = getattr(transformers, name)
    own = getattr(import_module(public.__module__), public.__name__)
    return own, own is public
