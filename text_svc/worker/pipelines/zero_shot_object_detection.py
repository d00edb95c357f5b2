"""Objects in images, out of labels that the caller names: OWL-ViT, OWLv2 and Grounding DINO."""

from __future__ import annotations

import threading
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, BatchFeature

from ml import transformers_pb2 as pb
from shared.errors import InputTooLargeError, InvalidArgumentError, InvalidModelError
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.infer.images import ImagePipeline
from text_svc.worker.infer.labels import required_labels
from text_svc.worker.infer.regions import DetectionOptions, corners
from text_svc.worker.media.processors import read_processor

MAX_LABELS = 256
_OWL = ("owlvit", "owlv2")
_GROUNDING = ("grounding-dino", "mm-grounding-dino")
# The lowest scores that transformers keeps, unless the caller says another.
OWL_THRESHOLD, GROUNDING_THRESHOLD = 0.1, 0.25
# What separates labels in the text that Grounding DINO reads.
_SEPARATOR = "."


class ZeroShotObjectDetector(ImagePipeline[DetectionOptions]):
    """An image and labels to those labels with scores and boxes, the best first.

    Raises:
        InvalidModelError: the model is of another architecture, or as `ImagePipeline`.
    """

    options = DetectionOptions
    auto_class = AutoModelForZeroShotObjectDetection

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._is_owl = self.model.config.model_type in _OWL

    def read_model(self, source: Pretrained) -> Any:
        model_type = source.read(AutoConfig).model_type
        if model_type not in (*_OWL, *_GROUNDING):
            raise InvalidModelError(
                f"a model of type {model_type[:80]!r} is not served as zero-shot-object-detection; "
                f"it must be one of {', '.join((*_OWL, *_GROUNDING))}"
            )
        return super().read_model(source)

    def read_processor(self, source: Pretrained) -> Any:
        return read_processor(source)

    def infer(
        self, request: pb.InferRequest, options: DetectionOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        labels = required_labels(request)
        if len(labels) > MAX_LABELS:
            raise InputTooLargeError(
                f"the request has {len(labels)} labels; the limit is {MAX_LABELS}",
                metadata={"limit": str(MAX_LABELS)},
            )
        image = self.image(request)
        texts = self._owl_texts(labels) if self._is_owl else self._grounding_text(labels)
        images = self.processor.image_processor(images=image, return_tensors="pt")
        outputs = self.outputs(BatchFeature({**images, **texts}), cancelled)
        default = OWL_THRESHOLD if self._is_owl else GROUNDING_THRESHOLD
        threshold = default if options.threshold is None else options.threshold
        if self._is_owl:
            found = self._owl(outputs, threshold, image)
        else:
            found = self._grounded(outputs, texts["input_ids"][0], threshold, image)
        best = found["scores"].argsort(descending=True, stable=True)[: options.top_k]
        return pb.InferResponse(
            regions=[
                pb.ImageRegion(
                    label=labels[int(found["labels"][index])],
                    score=float(found["scores"][index]),
                    points=corners(found["boxes"][index].tolist(), image.width, image.height),
                )
                for index in best.tolist()
            ]
        )

    def _owl_texts(self, labels: list[str]) -> Any:
        limit: int = self.model.config.text_config.max_position_embeddings
        tokenizer = self.processor.tokenizer
        for index, ids in enumerate(tokenizer(labels)["input_ids"]):
            _check_tokens(len(ids), limit, f"labels[{index}]")
        return tokenizer(labels, padding="max_length", max_length=limit, return_tensors="pt")

    def _owl(self, outputs: Any, threshold: float, image: Image.Image) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor]
        (found,) = self.processor.image_processor.post_process_object_detection(
            outputs, threshold=threshold, target_sizes=[(image.height, image.width)]
        )
        return found

    def _grounding_text(self, labels: list[str]) -> Any:
        """The labels as one text, as transformers' processor writes it: "a cat. a dog."."""
        for index, label in enumerate(labels):
            if _SEPARATOR in label:
                raise InvalidArgumentError(
                    f"labels[{index}] has a {_SEPARATOR!r}, which separates labels in this model",
                    field=f"labels[{index}]",
                )
        text = f"{_SEPARATOR} ".join(label.strip().lower() for label in labels) + _SEPARATOR
        encoded = self.processor.tokenizer(text, return_tensors="pt")
        limit: int = self.model.config.max_text_len
        _check_tokens(encoded["input_ids"].shape[1], limit, "labels")
        return encoded

    def _grounded(
        self, outputs: Any, tokens: torch.Tensor, threshold: float, image: Image.Image
    ) -> dict[str, torch.Tensor]:
        """Boxes with the score of their likeliest token, as transformers has it, and the label that
        has the likeliest of the labels' tokens.
        """
        found: dict[str, torch.Tensor]
        (found,) = self.processor.image_processor.post_process_object_detection(
            outputs, threshold=threshold, target_sizes=[(image.height, image.width)]
        )
        scores = outputs.logits[0].sigmoid()
        kept = scores[scores.amax(-1) > threshold][:, : len(tokens)]
        tokenizer = self.processor.tokenizer
        separators = tokens == tokenizer.convert_tokens_to_ids(_SEPARATOR)
        special = torch.isin(tokens, torch.tensor(tokenizer.all_special_ids))
        of_labels = kept.masked_fill(separators | special, -1)
        found["labels"] = separators.cumsum(0)[of_labels.argmax(-1)]
        return found


def _check_tokens(count: int, limit: int, field: str) -> None:
    if count > limit:
        raise InvalidArgumentError(
            f"{field} {'has' if '[' in field else 'have'} {count} tokens; the model's limit is "
            f"{limit}",
            field=field,
        )
