"""The interface of a sentence encoder: padded batches of token ids in, vectors out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from text_svc.processes.specs import WorkerReport

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
# Called once per batch, in any thread, with its vectors or with an error.
Done = Callable[[Vectors | BaseException], None]


class Encoder(Protocol):
    """Encodes batches, several of them at once.

    Attributes:
        dimensions: size of a vector.
        streams: number of batches that run at once.
    """

    dimensions: int
    streams: int

    def wait_idle(self) -> None:
        """Waits until a batch can start at once."""

    def start(self, input_ids: Ids, attention_mask: Ids, done: Done) -> None:
        """Starts a batch. Both arrays have the shape (texts, tokens); the mask is 1 for tokens."""

    def close(self) -> None:
        """Waits for the batches that run."""


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder in memory, and the properties of its model.

    Attributes:
        max_tokens: most tokens of a text that the model can read.
        pad_token: the id to pad short texts of a batch with.
        report: the memory that the encoder takes.
    """

    encoder: Encoder
    tokenizer: Tokenizer
    max_tokens: int
    pad_token: int
    report: WorkerReport
