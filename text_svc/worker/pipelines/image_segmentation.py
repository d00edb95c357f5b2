"""What each pixel of an image belongs to: SegFormer, MaskFormer, Mask2Former, EoMT, DETR."""

from __future__ import annotations

import inspect
import threading
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field
from transformers import (
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoModelForInstanceSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.cancel import raise_if_cancelled
from text_svc.worker.infer.images import ImagePipeline, refuse_timm
from text_svc.worker.infer.labels import label_names
from text_svc.worker.infer.regions import MaskOptions, MaskWriter

Subtask = Literal["panoptic", "instance", "semantic"]
# The first that a model can do is its default, as in transformers' pipeline.
SUBTASKS: tuple[Subtask, ...] = ("panoptic", "instance", "semantic")
_CLASSES = (
    (MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING, AutoModelForUniversalSegmentation),
    (MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING, AutoModelForInstanceSegmentation),
    (MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, AutoModelForSemanticSegmentation),
)
# It reads its task as a text, and needs a file of another repository to know things from stuff.
_ONEFORMER = "oneformer"
# Models that find segments and not labels of pixels, and the side of the square that transformers
# resizes their masks to before it adds them up to labels; 0 is as they are.
_OF_QUERIES = {"mask2former": 384, "maskformer": 0, _ONEFORMER: 0}
_THRESHOLDS = ("threshold", "mask_threshold", "overlap_mask_area_threshold")
# Numbers that are resized to the image's size at once: 128 MiB.
MAX_RESIZED = 32 << 20


class SegmentationOptions(MaskOptions):
    """The names and numbers of transformers' pipeline.

    Attributes:
        subtask: absent is the first of SUBTASKS that the model can do.
        threshold: the lowest score of a segment; not for semantic ones.
        mask_threshold: the lowest score of a pixel of a segment.
        overlap_mask_area_threshold: the lowest part of a segment's pixels that no other one takes.
    """

    subtask: Subtask | None = None
    threshold: float = Field(0.9, ge=0, le=1, allow_inf_nan=False)
    mask_threshold: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)
    overlap_mask_area_threshold: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)


class Segmenter(ImagePipeline[SegmentationOptions]):
    """An image to labels with scores and masks of its size.

    Raises:
        InvalidModelError: the model's config does not name its labels, transformers has no class
            for it, or as `ImagePipeline`.
    """

    options = SegmentationOptions

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._names = label_names(self.model.config)
        self._subtasks = [each for each in SUBTASKS if self._can(each)]
        if not self._subtasks:
            raise InvalidModelError(
                f"{type(self.processor).__name__} of this model has no answers of segmentation"
            )

    def read_model(self, source: Pretrained) -> Any:
        config = source.read(AutoConfig)
        refuse_timm(config)
        for mapping, auto_class in _CLASSES:
            if type(config) in mapping:
                return source.model(auto_class)
        raise InvalidModelError(
            f"transformers has no model of image segmentation of type {config.model_type[:80]!r}"
        )

    def read_processor(self, source: Pretrained) -> Any:
        if self.model.config.model_type == _ONEFORMER:
            self._tokenizer = source.tokenizer(self.model)
        return super().read_processor(source)

    def infer(
        self, request: pb.InferRequest, options: SegmentationOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        subtask = options.subtask or self._subtasks[0]
        if subtask not in self._subtasks:
            raise InvalidArgumentError(
                f"the model has no {subtask} segmentation; subtask must be one of "
                f"{', '.join(self._subtasks)}",
                field="options[subtask]",
            )
        image = self.mapped_image(request)
        outputs = self._outputs(image, subtask, cancelled)
        if subtask == "semantic":
            segments, info = self._semantic(outputs, image, cancelled)
        else:
            segments, info = self._segments(outputs, image, subtask, options)
        writer = MaskWriter(options.mask_format, self.spec.max_message_bytes)
        regions = []
        for number, label, score in info:
            raise_if_cancelled(cancelled)
            mask = (segments == number).numpy()
            regions.append(writer.region(mask, label=self._names[label], score=score))
        return pb.InferResponse(regions=regions)

    def _can(self, subtask: Subtask) -> bool:
        if not hasattr(self.processor, f"post_process_{subtask}_segmentation"):
            return False
        if self.model.config.model_type == _ONEFORMER and subtask == "instance":
            return False
        # EoMT's processor cuts images into parts for semantic segmentation alone.
        return subtask == "semantic" or not getattr(self.processor, "do_split_image", False)

    def _outputs(self, image: Image.Image, subtask: Subtask, cancelled: threading.Event) -> Any:
        if self.model.config.model_type == _ONEFORMER:
            inputs = self.processor(images=[image], task_inputs=[subtask], return_tensors="pt")
            inputs["task_inputs"] = self._tokenizer(
                inputs["task_inputs"],
                padding="max_length",
                max_length=self.model.config.task_seq_len,
                return_tensors="pt",
            )["input_ids"]
        else:
            inputs = self.processor(images=[image], return_tensors="pt")
        offsets = inputs.get("patch_offsets")  # EoMT's, which are no tensors
        more = {"patch_offsets": offsets} if offsets else {}
        return self.outputs(inputs, cancelled, **more)

    def _segments(
        self, outputs: Any, image: Image.Image, subtask: Subtask, options: SegmentationOptions
    ) -> tuple[torch.Tensor, list[tuple[int, int, float]]]:
        """The number of a segment for each pixel, and each number's label and score."""
        post_process = getattr(self.processor, f"post_process_{subtask}_segmentation")
        taken = inspect.signature(post_process).parameters.keys()
        if unused := sorted(options.model_fields_set & set(_THRESHOLDS) - taken):
            raise InvalidArgumentError(
                f"option {unused[0]} has no effect on this model's {subtask} segmentation",
                field=f"options[{unused[0]}]",
            )
        given = {name: getattr(options, name) for name in _THRESHOLDS if name in taken}
        (found,) = post_process(outputs, **given, target_sizes=[(image.height, image.width)])
        info = [(each["id"], each["label_id"], each["score"]) for each in found["segments_info"]]
        return found["segmentation"], sorted(info, key=lambda each: -each[2])

    def _semantic(
        self, outputs: Any, image: Image.Image, cancelled: threading.Event
    ) -> tuple[torch.Tensor, list[tuple[int, int, float]]]:
        """The label of each pixel, and each label that there is."""
        if "logits" in outputs and outputs.logits.dim() == 4:
            labels = likeliest(outputs.logits[0], (image.height, image.width), cancelled)
        elif self.model.config.model_type in _OF_QUERIES:
            side = _OF_QUERIES[self.model.config.model_type]
            labels = likeliest(of_queries(outputs, side), (image.height, image.width), cancelled)
        else:
            (labels,) = self.processor.post_process_semantic_segmentation(
                outputs, target_sizes=[(image.height, image.width)]
            )
        return labels, [(label, label, 0.0) for label in labels.unique().tolist()]


def of_queries(outputs: Any, side: int) -> torch.Tensor:
    """The labels of pixels of a model that finds segments, as transformers' processors have them.

    Args:
        outputs: of the model, for one image.
        side: of the square that the masks are resized to; 0 leaves them as they are.

    Returns:
        Scores, shape (labels, height, width) of the masks.
    """
    masks = outputs.masks_queries_logits
    if side:
        masks = torch.nn.functional.interpolate(
            masks, (side, side), mode="bilinear", align_corners=False
        )
    labels = outputs.class_queries_logits[0].softmax(-1)[:, :-1]  # the last one is "none of them"
    return torch.einsum("qc,qhw->chw", labels, masks[0].sigmoid())


def likeliest(
    logits: torch.Tensor, size: tuple[int, int], cancelled: threading.Event
) -> torch.Tensor:
    """The likeliest label of each pixel of an image of `size`, height and width.

    It is what transformers' processors make of a model's logits, a few labels at a time: 150
    labels of 12 megapixels would take 7 GB.

    Args:
        logits: shape (labels, height, width) of the model's own.
        size: of the result.
        cancelled: set when the caller has gone.
    """
    at_once = max(1, MAX_RESIZED // (size[0] * size[1]))
    best = torch.full(size, -torch.inf)
    labels = torch.zeros(size, dtype=torch.int64)
    for start in range(0, len(logits), at_once):
        raise_if_cancelled(cancelled)
        part = torch.nn.functional.interpolate(
            logits[None, start : start + at_once], size, mode="bilinear", align_corners=False
        )
        scores, indices = part[0].max(0)
        better = scores > best
        labels[better] = indices[better] + start
        best = torch.maximum(best, scores)
    return labels
