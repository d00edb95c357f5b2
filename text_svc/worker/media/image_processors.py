"""Reads the processors of models that take images alone, without torchvision.

transformers has most image processors on Pillow. A few it has only on torchvision; those that do
no more than resize an image and scale its numbers are done here, with torch's own resizing, which
is what torchvision calls. The others are refused. Some of those on Pillow name torchvision all the
same: one for what is not called here, and two resize answers with it, for which they get torch's
resizing here. The pinned version of transformers keeps these names where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig
from transformers.image_processing_base import ImageProcessingMixin

# transformers' public name for it requires torchvision, which processors on Pillow do without.
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    AutoImageProcessor,
)

from shared.errors import InvalidModelError
from text_svc.torch_models.pretrained import Pretrained

# The largest side that `TorchImages` resizes to; those of published models have up to 1,536.
MAX_SIDE = 4096
# torch's names of Pillow's filters.
_MODES = {2: "bilinear", 3: "bicubic"}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
# Modules that call torchvision's `resize` on a model's answers.
_RESIZE_ANSWERS = (
    "transformers.models.oneformer.image_processing_pil_oneformer",
    "transformers.models.zoedepth.image_processing_pil_zoedepth",
)
# What `TorchImages` does not do, and a model's files might ask for.
_UNKNOWN_STEPS = ("do_center_crop", "do_pad")


@dataclass(frozen=True)
class _Kind:
    """A processor that transformers has only on torchvision.

    Attributes:
        side: of the square that it makes, unless the model's files say another size.
        colours: mean and deviation, unless the model's files say others.
        resize_first: whether it resizes whole numbers from 0 to 255, and rounds, or those that the
            model reads.
        antialias: whether it blurs what it makes smaller.
    """

    side: int
    colours: Mapping[str, list[float]]
    resize_first: bool = True
    antialias: bool = True


_KINDS = {
    "Sam2ImageProcessor": _Kind(1024, _IMAGENET),
    "Sam3ImageProcessor": _Kind(1008, _HALVES),
    "DINOv3ViTImageProcessor": _Kind(224, _IMAGENET, resize_first=False),
    "DepthProImageProcessor": _Kind(1536, _HALVES, resize_first=False, antialias=False),
}


class TorchImages:
    """Resizes an image to a fixed size and scales its numbers.

    Attributes:
        size: height and width of the result.

    Args:
        kind: what the processor does.
        settings: preprocessor_config.json.

    Raises:
        InvalidModelError: the settings ask for something else.
    """

    def __init__(self, kind: _Kind, settings: Mapping[str, Any]) -> None:
        self._kind = kind
        if steps := [step for step in _UNKNOWN_STEPS if settings.get(step)]:
            raise _invalid(f"{steps[0]} is not done here for this processor")
        size = settings.get("size") or {"height": kind.side, "width": kind.side}
        try:
            self.size = (int(size["height"]), int(size["width"]))
            self._mode = _MODES[settings.get("resample") or 2]
        except (KeyError, TypeError, ValueError):
            raise _invalid("its size must have height and width, and resample be 2 or 3") from None
        if not all(0 < side <= MAX_SIDE for side in self.size):
            raise _invalid(f"its size is {self.size}; sides must be from 1 to {MAX_SIDE}")
        self._resizes = settings.get("do_resize") is not False
        factor = settings.get("rescale_factor") or 1 / 255
        self._factor = float(factor) if settings.get("do_rescale") is not False else 1.0
        self._mean = _colours(settings, kind, "image_mean", 0.0)
        self._deviation = _colours(settings, kind, "image_std", 1.0)

    def __call__(self, images: Image.Image, return_tensors: str = "pt") -> dict[str, Any]:
        """The image as `pixel_values`, shape (1, 3, height, width)."""
        pixels = torch.from_numpy(np.array(images)).permute(2, 0, 1)[None].float()
        if self._kind.resize_first:
            pixels = self._resized(pixels).round().clamp(0, 255)
        pixels = (pixels * self._factor - self._mean) / self._deviation
        if not self._kind.resize_first:
            pixels = self._resized(pixels)
        return {"pixel_values": pixels}

    def _resized(self, pixels: torch.Tensor) -> torch.Tensor:
        if not self._resizes:
            return pixels
        return torch.nn.functional.interpolate(
            pixels,
            self.size,
            mode=self._mode,
            align_corners=False,
            antialias=self._kind.antialias,
        )


def read_image_processor(source: Pretrained) -> Any:
    """The image processor of a model's folder.

    Raises:
        InvalidModelError: transformers has it only on torchvision.
        OSError, ValueError: transformers cannot read the files.
    """
    settings, _ = ImageProcessingMixin.get_image_processor_dict(
        source.folder, local_files_only=True
    )
    name = _name(settings, source)
    if kind := _KINDS.get(name):
        return TorchImages(kind, settings)
    forms = [each for each in IMAGE_PROCESSOR_MAPPING_NAMES.values() if name in each.values()]
    if forms and not any("pil" in each for each in forms):
        raise InvalidModelError(
            f"transformers has the image processor of this model, {name[:80]}, only on "
            "torchvision, which is not used here"
        )
    if not forms:
        return source.read(AutoImageProcessor)
    # The package's attribute may be a placeholder that raises; the class itself is in its module.
    public: Any = getattr(transformers, str(forms[0]["pil"]))
    module = import_module(public.__module__)
    if public.__module__ in _RESIZE_ANSWERS:
        vars(module).setdefault("tvF", _RESIZING)
    return source.read(getattr(module, public.__name__))


def _resize(
    image: torch.Tensor, size: Any, interpolation: str, antialias: bool = True
) -> torch.Tensor:
    """torchvision's function of this name, for tensors of numbers that are not whole."""
    batch = image if image.dim() == 4 else image[None]
    resized = torch.nn.functional.interpolate(
        batch, tuple(size), mode=interpolation, align_corners=False, antialias=antialias
    )
    return resized if image.dim() == 4 else resized[0]


_RESIZING = SimpleNamespace(
    resize=_resize, InterpolationMode=SimpleNamespace(BILINEAR="bilinear", BICUBIC="bicubic")
)


def _name(settings: Mapping[str, Any], source: Pretrained) -> str:
    """The class of a processor as transformers calls it on torchvision."""
    old = str(settings.get("feature_extractor_type") or "")
    name = settings.get("image_processor_type") or old.replace("FeatureExtractor", "ImageProcessor")
    if not name:
        model_type = source.read(AutoConfig).model_type
        name = (IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}).get("torchvision") or ""
    return str(name).removesuffix("Fast").removesuffix("Pil")


def _colours(
    settings: Mapping[str, Any], kind: _Kind, name: str, neutral: float
) -> torch.Tensor | float:
    if settings.get("do_normalize") is False:
        return neutral
    values = torch.tensor(settings.get(name) or kind.colours[name], dtype=torch.float32)
    if values.shape != (3,):
        raise _invalid(f"{name} must be three numbers")
    return values[:, None, None]


def _invalid(why: str) -> InvalidModelError:
    return InvalidModelError(f"preprocessor_config.json is not supported: {why}")
