"""The base of pipelines whose model gives each text, or pair of texts, a row of scores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from shared.errors import InternalError, InvalidArgumentError, ServiceError
from text_svc.formats.load_errors import memory_error
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.cancel import raise_if_cancelled
from text_svc.worker.infer.base import Options, TextPipeline
from text_svc.worker.infer.padding import Encoded, PaddedModel
from text_svc.worker.length_batches import length_batches
from text_svc.worker.tokenizing import pieces

log = logging.getLogger(__name__)

# Texts of different length, with which the padding is tried.
SAMPLES = ("a few words", "A longer text: it has a few words more.", "one, two, three")

# What a caller calls a text, by its index.
Naming = Callable[[int], str]


class ScoringPipeline(TextPipeline[Options]):
    """A classifier of texts.

    Raises:
        InvalidModelError: the model does not give a text a finite number for each label.
    """

    auto_class = AutoModelForSequenceClassification

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self.model.config.get_text_config().use_cache = False  # nothing is generated
        _score_in_float32(self.model)
        samples = [dict(self.processor(text, truncation=True)) for text in SAMPLES]
        self._padded = PaddedModel(
            self.model, self.forward, self.processor.pad_token_type_id, samples
        )

    def tokenized(
        self,
        texts: Sequence[tuple[str, ...]],
        cancelled: threading.Event,
        naming: Naming,
        *,
        truncation: str = "longest_first",
    ) -> list[Encoded]:
        """Texts, or pairs of texts, as the tokenizer's lists.

        They are tokenized a few at a time, which bounds the memory.

        Args:
            texts: one or two of each.
            cancelled: ends the work before the next few.
            naming: for the message.
            truncation: which of a pair is truncated to what the model reads.

        Raises:
            CallCancelledError: the caller has gone.
            InvalidArgumentError: a text has no tokens, or the one that is not truncated is too
                long.
        """
        encoded: list[Encoded] = []
        for piece in pieces(texts, lambda each: sum(map(len, each))):
            raise_if_cancelled(cancelled)
            lists = self._tokenized(piece, truncation, naming, len(encoded))
            encoded += [
                {name: values[index] for name, values in lists.items()}
                for index in range(len(piece))
            ]
        for index, each in enumerate(encoded):
            if not each["input_ids"]:  # possible if the tokenizer adds no special tokens
                raise InvalidArgumentError(f"{naming(index)} has no tokens", field=naming(index))
        return encoded

    def logits(
        self, encoded: Sequence[Encoded], cancelled: threading.Event, naming: Naming
    ) -> torch.Tensor:
        """Logits of tokenized texts, shape (texts, labels), in batches of similar length.

        A batch that fails is run again text by text, to find the one at fault.

        Args:
            encoded: what `tokenized` returned.
            cancelled: ends the work before the next batch.
            naming: for the message.

        Raises:
            CallCancelledError: the caller has gone.
            InternalError: the model fails at a text, or its scores are not finite.
        """
        lengths = [len(each["input_ids"]) for each in encoded]
        rows = torch.empty(len(lengths), self.model.config.num_labels)
        for batch in length_batches(lengths, streams=1):
            raise_if_cancelled(cancelled)
            together = self._rows([encoded[index] for index in batch])
            if together is not None:
                rows[batch] = together
                continue
            for index in batch:
                raise_if_cancelled(cancelled)
                rows[index] = self._row(encoded[index], naming(index))
        finite = rows.isfinite().all(1)
        if not finite.all():
            name = naming(int((~finite).nonzero()[0]))
            raise InternalError(f"the model's scores of {name} are not finite numbers")
        return rows

    def _rows(self, texts: Sequence[Encoded]) -> torch.Tensor | None:
        """The logits of a batch; None if the model fails."""
        if len(texts) == 1:
            return None
        try:
            return self._padded.logits(texts)
        except Exception:
            log.exception("a batch failed", extra={"texts": len(texts)})
            return None

    def _row(self, text: Encoded, name: str) -> torch.Tensor:
        try:
            return self._padded.logits([text])[0]
        except Exception as error:
            if memory_error(error):
                raise
            log.exception("the model fails at a text")
            raise InternalError(f"the model fails at {name}") from None

    def _tokenized(
        self, texts: Sequence[tuple[str, ...]], truncation: str, naming: Naming, first: int
    ) -> Mapping[str, Sequence[Sequence[int]]]:
        limit = self.processor.model_max_length
        columns = [list(column) for column in zip(*texts, strict=True)]
        try:
            lists: Mapping[str, Sequence[Sequence[int]]] = self.processor(
                *columns, truncation=truncation
            )
            longest = max(range(len(texts)), key=lambda index: len(lists["input_ids"][index]))
            if len(lists["input_ids"][longest]) <= limit:
                return lists
        except Exception as error:
            if isinstance(error, ServiceError) or "too short" not in str(error):
                raise
            # That is what the library says of the part that it may truncate.
            longest = max(range(len(texts)), key=lambda index: len(texts[index][-1]))
        name = naming(first + longest)
        raise InvalidArgumentError(
            f"{name} is too long: the model's limit is {limit} tokens",
            field=name,
            metadata={"limit": str(limit)},
        )


def _score_in_float32(model: Any) -> None:
    """Has the last layer of a model in half precision compute in float32.

    Scores near each other would be the same number in bfloat16, which has three digits.
    """
    if model.dtype not in (torch.bfloat16, torch.float16):
        return
    labels = model.config.num_labels
    heads = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == labels
    ]
    if heads:
        heads[-1].float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
