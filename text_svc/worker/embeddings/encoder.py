"""What the batcher needs of an encoder, and what an engine makes of a model's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from text_svc.processes.launch import WorkerReport

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
# Called once a batch, in whatever thread, with its vectors or with what went wrong.
Done = Callable[[Vectors | BaseException], None]


class Encoder(Protocol):
    """Turns padded batches of tokens into vectors, several batches at once.

    Attributes:
        dimensions: numbers of one vector.
        streams: batches that run at once.
    """

    dimensions: int
    streams: int

    def wait_idle(self) -> None:
        """Returns once `start` would not wait."""

    def start(self, input_ids: Ids, attention_mask: Ids, done: Done) -> None:
        """Begins a batch, both arrays of shape (texts, tokens)."""

    def close(self) -> None:
        """Waits for what runs."""


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder in memory, and what its files say.

    Attributes:
        max_tokens: tokens of one text that the model can read.
        pad_token: the id that fills up the short texts of a batch.
        report: what the encoder was measured to cost.
    """

    encoder: Encoder
    tokenizer: Tokenizer
    max_tokens: int
    pad_token: int
    report: WorkerReport
