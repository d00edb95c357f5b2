"""Texts to vectors: tokenizer and batcher of one model, and the limits of a call."""

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
        max_texts: most texts of a call.
        max_bytes: most bytes of a call's texts together.
        max_tokens: most tokens of a call's texts together, each truncated to what the model reads.
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
        """Embeds the texts of a call.

        Args:
            texts: truncated to what the model can read.
            prompt_name: one of the model's prompts, which goes before each text; "" is the
                model's default.
            dimensions: how many numbers of each vector to return, for models that are trained for
                that (Matryoshka); 0 returns all.

        Returns:
            Vectors in the order of the texts, shape (texts, dimensions), and the number of tokens
            that the model read.

        Raises:
            MissingFieldError: there are no texts.
            InputTooLargeError: the call is over one of the limits.
            OutOfRangeError: the model has fewer dimensions.
            InvalidArgumentError: a text has no tokens, or there is no such prompt.
            QueueFullError: too many texts wait already.
        """
        self._check(texts, dimensions)
        encoded = await self._tokenizer.encode(texts, self._tokenizer.prompt(prompt_name))
        if not all(encoded):  # possible if the tokenizer adds no special tokens
            place = f"texts[{next(i for i, ids in enumerate(encoded) if not ids)}]"
            raise InvalidArgumentError(f"{place} has no tokens", field=place)
        tokens = sum(map(len, encoded))
        if tokens > self._max_tokens:
            raise InputTooLargeError(
                f"the texts have {tokens} tokens; the limit is {self._max_tokens} per call",
                metadata={"limit": str(self._max_tokens)},
            )
        vectors = await self._batcher.embed(encoded)
        return self._shortened(vectors, dimensions), tokens

    def close(self) -> None:
        """Waits for the batches that run; calls that wait fail."""
        self._batcher.close()

    def _check(self, texts: Sequence[str], dimensions: int) -> None:
        if not texts:
            raise MissingFieldError("texts is empty", field="texts")
        if len(texts) > self._max_texts:
            raise InputTooLargeError(
                f"the request has {len(texts)} texts; the limit is {self._max_texts}",
                metadata={"limit": str(self._max_texts)},
            )
        check_sizes(texts, "texts", self._max_bytes, empty=True)
        if not 0 <= dimensions <= self._batcher.dimensions:
            raise OutOfRangeError(
                f"dimensions is {dimensions}; it must be from 1 to {self._batcher.dimensions}, or "
                "0 for all",
                field="dimensions",
            )

    def _shortened(self, vectors: Vectors, dimensions: int) -> Vectors:
        if dimensions in (0, vectors.shape[1]):
            return vectors
        short = np.ascontiguousarray(vectors[:, :dimensions])
        if self._normalized:
            short /= np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)
        return short
