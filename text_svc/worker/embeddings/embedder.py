"""Texts to vectors: tokenizer and batcher of one model, with the limits of a call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.errors import (
    InputTooLargeError,
    InvalidArgumentError,
    MissingFieldError,
    OutOfRangeError,
)
from text_svc.worker.checks import check_sizes
from text_svc.worker.embeddings.batcher import MicroBatcher
from text_svc.worker.embeddings.encoder import Vectors
from text_svc.worker.embeddings.tokenizer import SentenceTokenizer


class Embedder:
    """A loaded sentence encoder.

    Args:
        tokenizer: of the model.
        batcher: shares the encoder among callers.
        normalized: whether the model's vectors have length 1.
        max_texts: texts of one call at most.
        max_bytes: bytes of a call's texts at most.
        max_tokens: tokens of a call's texts at most, after each was cut to the model's length.
    """

    def __init__(
        self,
        tokenizer: SentenceTokenizer,
        batcher: MicroBatcher,
        *,
        normalized: bool,
        max_texts: int,
        max_bytes: int,
        max_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._batcher = batcher
        self._normalized = normalized
        self._max_texts = max_texts
        self._max_bytes = max_bytes
        self._max_tokens = max_tokens

    async def embed(
        self, texts: Sequence[str], *, prompt_name: str = "", dimensions: int = 0
    ) -> tuple[Vectors, int]:
        """Vectors of shape (texts, dimensions), in the order of the texts, and the tokens read.

        Args:
            texts: what is longer than the model's limit is cut off.
            prompt_name: a prompt of the model's own that is put before each text; "" is its
                default.
            dimensions: the first so many numbers of each vector alone, for models trained so
                (Matryoshka); 0 is all.

        Raises:
            MissingFieldError, InputTooLargeError, OutOfRangeError, InvalidArgumentError: with the
                field or the limit.
            QueueFullError: too many texts wait already.
        """
        self._check(texts, dimensions)
        encoded = await self._tokenizer.encode(texts, self._tokenizer.prompt(prompt_name))
        if not all(encoded):  # of a tokenizer that puts nothing around a text
            place = f"texts[{next(i for i, ids in enumerate(encoded) if not ids)}]"
            raise InvalidArgumentError(f"{place} has no tokens", field=place)
        tokens = sum(map(len, encoded))
        if tokens > self._max_tokens:
            raise InputTooLargeError(
                f"the texts have {tokens} tokens, the limit is {self._max_tokens} a call",
                metadata={"limit": str(self._max_tokens)},
            )
        vectors = await self._batcher.embed(encoded)
        return self._shortened(vectors, dimensions), tokens

    def close(self) -> None:
        """Calls that wait fail; returns once what has begun is done."""
        self._batcher.close()

    def _check(self, texts: Sequence[str], dimensions: int) -> None:
        if not texts:
            raise MissingFieldError("texts is empty", field="texts")
        if len(texts) > self._max_texts:
            raise InputTooLargeError(
                f"{len(texts)} texts are over the limit of {self._max_texts} a call",
                metadata={"limit": str(self._max_texts)},
            )
        check_sizes(texts, "texts", self._max_bytes, empty=True)
        if not 0 <= dimensions <= self._batcher.dimensions:
            raise OutOfRangeError(
                f"dimensions is {dimensions}; accepted is 1 to {self._batcher.dimensions}, or 0 "
                "for all",
                field="dimensions",
            )

    def _shortened(self, vectors: Vectors, dimensions: int) -> Vectors:
        if dimensions in (0, vectors.shape[1]):
            return vectors
        short = np.ascontiguousarray(vectors[:, :dimensions])
        if self._normalized:
            short /= np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)
        return short
