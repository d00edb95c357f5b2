"""Masks of what points and boxes show: SAM, SAM-HQ and SAM 2."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModelForMaskGeneration, Sam2Model

from ml import transformers_pb2 as pb
from shared.errors import (
    InputTooLargeError,
    InternalError,
    InvalidArgumentError,
    MissingFieldError,
    OutOfRangeError,
)
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.cancel import raise_if_cancelled
from text_svc.worker.infer.images import ImagePipeline, refuse_timm
from text_svc.worker.infer.regions import MaskOptions, MaskWriter
from text_svc.worker.media.image_processors import TorchImages

MAX_PROMPTS = 64
MAX_POINTS = 64
# The published SAM 2 has the configuration of its model of videos, which has that of images in it.
_SAM2_VIDEO = "sam2_video"


class MaskGenerationOptions(MaskOptions):
    """The names of transformers.

    Attributes:
        multimask_output: three masks for each prompt, of which each may be what is meant; else one.
        mask_threshold: the lowest value of a pixel that belongs to a mask, of the model's logits.
    """

    multimask_output: bool = True
    mask_threshold: float = Field(0.0, ge=-100, le=100, allow_inf_nan=False)


@dataclass(frozen=True)
class _Seen:
    """An image as the model has seen it.

    Attributes:
        digest: of the file.
        size: height and width of the image.
        read_size: what it was resized to, for the model.
        embeddings: arguments of the model.
    """

    digest: bytes
    size: tuple[int, int]
    read_size: tuple[int, int]
    embeddings: dict[str, Any]


class MaskGenerator(ImagePipeline[MaskGenerationOptions]):
    """An image and prompts to masks, those of each prompt with the best first.

    The last image is kept as the model has seen it, so that further prompts for it cost little.
    """

    options = MaskGenerationOptions
    auto_class = AutoModelForMaskGeneration

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._last: _Seen | None = None

    def read_model(self, source: Pretrained) -> Any:
        config = source.read(AutoConfig)
        refuse_timm(getattr(config, "vision_config", None))
        # transformers 5.5 reads the decoder's part of this configuration with the class of another.
        return source.model(Sam2Model if config.model_type == _SAM2_VIDEO else self.auto_class)

    def infer(
        self, request: pb.InferRequest, options: MaskGenerationOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        check_prompts(request.region_prompts)
        seen = self._see(request, cancelled)
        writer = MaskWriter(options.mask_format, self.spec.max_message_bytes)
        regions = []
        for number, prompt in enumerate(request.region_prompts):
            raise_if_cancelled(cancelled)
            masks, scores = self._masks(seen, prompt, options, cancelled)
            for index in scores.argsort(descending=True, stable=True).tolist():
                region = writer.region(
                    masks[index].numpy(), score=float(scores[index]), prompt=number
                )
                regions.append(region)
        return pb.InferResponse(regions=regions)

    def _see(self, request: pb.InferRequest, cancelled: threading.Event) -> _Seen:
        digest = hashlib.sha256(request.image.data).digest()
        if self._last and self._last.digest == digest:
            return self._last
        self._last, self._cancelled = None, cancelled
        image = self.mapped_image(request)
        inputs = self.processor(images=image, return_tensors="pt")
        pixels = self.to_model({"pixel_values": inputs["pixel_values"]})
        with torch.inference_mode():
            embeddings = self.model.get_image_embeddings(**pixels)
        named = {"image_embeddings": embeddings}
        if isinstance(embeddings, tuple):  # SAM-HQ's
            named = {"image_embeddings": embeddings[0], "intermediate_embeddings": embeddings[1]}
        if isinstance(self.processor, TorchImages):
            read_size = self.processor.size
        else:
            height, width = inputs["reshaped_input_sizes"][0].tolist()
            read_size = (height, width)
        self._last = _Seen(digest, (image.height, image.width), read_size, named)
        return self._last

    def _masks(
        self,
        seen: _Seen,
        prompt: pb.RegionPrompt,
        options: MaskGenerationOptions,
        cancelled: threading.Event,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The masks of one prompt, shape (masks, height, width), and what the model takes for the
        part of each that is right.
        """
        height, width = seen.read_size
        # Not in the model's dtype: in bfloat16 a place in a large image is off by some pixels.
        inputs: dict[str, torch.Tensor] = {}
        if prompt.points:
            points = [[point.x * width, point.y * height] for point in prompt.points]
            inputs["input_points"] = torch.tensor([[points]])
            inside = [int(not point.outside) for point in prompt.points]
            inputs["input_labels"] = torch.tensor([[inside]])
        if prompt.box:
            sides = (width, height, width, height)
            box = [part * side for part, side in zip(prompt.box, sides, strict=True)]
            inputs["input_boxes"] = torch.tensor([[box]])
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        self._cancelled = cancelled
        with torch.inference_mode():
            outputs = self.model(
                **seen.embeddings, **inputs, multimask_output=options.multimask_output
            )
        logits, scores = outputs.pred_masks.float().cpu(), outputs.iou_scores[0, 0].float().cpu()
        if logits.isnan().any() or scores.isnan().any():
            raise InternalError("the model's masks have values that are not numbers")
        if isinstance(self.processor, TorchImages):
            logits = torch.nn.functional.interpolate(logits[0], seen.size, mode="bilinear")
            return logits[0] > options.mask_threshold, scores
        (masks,) = self.processor.post_process_masks(
            logits, [seen.size], [seen.read_size], mask_threshold=options.mask_threshold
        )
        return masks[0], scores


def check_prompts(prompts: Sequence[pb.RegionPrompt]) -> None:
    """Refuses prompts that show nothing.

    Raises:
        MissingFieldError, InvalidArgumentError, OutOfRangeError: with the field.
        InputTooLargeError: there are over MAX_PROMPTS, or one has over MAX_POINTS.
    """
    if not prompts:
        raise MissingFieldError(
            "region_prompts is empty: it must have points or boxes", field="region_prompts"
        )
    _check_count("region_prompts", len(prompts), MAX_PROMPTS)
    for index, prompt in enumerate(prompts):
        field = f"region_prompts[{index}]"
        if not prompt.points and not prompt.box:
            raise MissingFieldError(f"{field} has neither points nor a box", field=field)
        _check_count(f"{field}.points", len(prompt.points), MAX_POINTS)
        if prompt.box and len(prompt.box) != 4:
            raise InvalidArgumentError(
                f"{field}.box has {len(prompt.box)} numbers; it must have 4", field=f"{field}.box"
            )
        places = [*(place for point in prompt.points for place in (point.x, point.y)), *prompt.box]
        if not all(math.isfinite(place) and 0 <= place <= 1 for place in places):
            raise OutOfRangeError(f"the places of {field} must be from 0 to 1", field=field)
        if prompt.box:
            left, top, right, bottom = prompt.box
            if left >= right or top >= bottom:
                raise InvalidArgumentError(
                    f"{field}.box must be left, top, right and bottom, with right after left and "
                    "bottom after top",
                    field=f"{field}.box",
                )


def _check_count(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise InputTooLargeError(
            f"{field} has {count} entries; the limit is {limit}", metadata={"limit": str(limit)}
        )
