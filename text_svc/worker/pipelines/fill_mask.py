"""The tokens that may stand in the place of a mask in a text."""

from __future__ import annotations

import threading
from typing import Any

import torch
from pydantic import Field
from transformers import AutoModelForMaskedLM

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.base import TextPipeline
from text_svc.worker.infer.labels import best_first
from text_svc.worker.infer.options import NoOptions

# Masks of a text: each has scores of the whole vocabulary.
MAX_MASKS = 64


class MaskOptions(NoOptions):
    """How many candidates of each mask to return."""

    top_k: int = Field(5, ge=1, le=1000)


class MaskFiller(TextPipeline[MaskOptions]):
    """As transformers' pipeline; scores are of the whole vocabulary, also for some words alone.

    Raises:
        InvalidModelError: the tokenizer has no mask.
    """

    takes = ("text",)
    options = MaskOptions
    auto_class = AutoModelForMaskedLM

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        if self.processor.mask_token_id is None:
            raise InvalidModelError("the tokenizer has no mask token, which fill-mask needs")
        self._masks: torch.Tensor | None = None
        head = self.model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._only_masks)

    def infer(
        self, request: pb.InferRequest, options: MaskOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        inputs = self.processor(request.text, return_tensors="pt")
        self._masks = self._places(inputs["input_ids"][0])
        targets = self._targets(request)
        logits = self.forward(inputs)[0]
        if len(logits) > len(self._masks):  # the model has not used its output embeddings
            logits = logits[self._masks]
        logits = logits.float().cpu()
        return pb.InferResponse(
            masks=[
                self._filled(row, scores, targets, options.top_k)
                for row, scores in zip(logits, logits.softmax(-1), strict=True)
            ]
        )

    def _only_masks(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Scores no other tokens: those of a long text would take gigabytes."""
        return (inputs[0][:, self._masks], *inputs[1:])

    def _places(self, ids: torch.Tensor) -> torch.Tensor:
        limit, mask = self.processor.model_max_length, self.processor.mask_token
        places: torch.Tensor = (ids == self.processor.mask_token_id).nonzero()[:, 0]
        if len(ids) > limit:
            raise InvalidArgumentError(
                f"text has {len(ids)} tokens; the model's limit is {limit}",
                field="text",
                metadata={"limit": str(limit)},
            )
        if not len(places):
            raise InvalidArgumentError(
                f"text has no {mask}, which is the model's mask", field="text"
            )
        if len(places) > MAX_MASKS:
            raise InvalidArgumentError(
                f"text has {len(places)} masks; the limit is {MAX_MASKS}",
                field="text",
                metadata={"limit": str(MAX_MASKS)},
            )
        return places

    def _targets(self, request: pb.InferRequest) -> torch.Tensor:
        """The tokens that may fill a mask: those of the request's labels, else all.

        Raises:
            InvalidArgumentError: a label is not one token. transformers would take its first one.
        """
        if not request.labels:
            return torch.arange(self.model.config.get_text_config().vocab_size)
        vocabulary = self.processor.get_vocab()
        targets = []
        for index, label in enumerate(request.labels):
            ids = [vocabulary[label]] if label in vocabulary else self._tokens(label)
            if len(ids) != 1 or ids[0] == self.processor.unk_token_id:
                raise InvalidArgumentError(
                    f"labels[{index}] is {label[:80]!r}, which is not one token of the model",
                    field=f"labels[{index}]",
                )
            targets.append(ids[0])
        return torch.tensor(list(dict.fromkeys(targets)))

    def _tokens(self, label: str) -> list[int]:
        ids: list[int] = self.processor(label, add_special_tokens=False)["input_ids"]
        return ids

    def _filled(
        self, logits: torch.Tensor, scores: torch.Tensor, targets: torch.Tensor, top_k: int
    ) -> pb.FilledMask:
        targets = targets[targets < len(logits)]
        # Of a whole vocabulary, only those that can be among the best are sorted.
        best = logits[targets].topk(min(top_k, len(targets))).indices
        targets = targets[best]
        order = best_first(logits[targets], scores[targets])
        return pb.FilledMask(
            candidates=[
                pb.MaskCandidate(text=self.processor.decode([token]), score=score, token_id=token)
                for token, score in (
                    (int(targets[index]), float(scores[targets[index]])) for index in order
                )
            ]
        )
