"""What the batcher needs of an encoder, and the one on OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import openvino as ov

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
# Called once a batch, in whatever thread, with its vectors or with what went wrong.
Done = Callable[[Vectors | BaseException], None]


class Encoder(Protocol):
    """Turns padded batches of tokens into vectors, several batches at once."""

    dimensions: int
    # Batches that run at once.
    streams: int

    def wait_idle(self) -> None:
        """Returns once `start` would not wait."""

    def start(self, input_ids: Ids, attention_mask: Ids, done: Done) -> None:
        """Begins a batch, both arrays of shape (texts, tokens)."""

    def close(self) -> None:
        """Waits for what runs."""


class OpenVinoEncoder:
    """An encoder that was converted by `text_svc.export_encoder`.

    Args:
        path: the .xml file; the weights lie beside it.
        precision: "f32" or "bf16", in which the CPU computes.
        threads: cores to use; each runs a batch of its own, which wastes less than sharing one.
    """

    def __init__(self, path: Path, *, precision: str, threads: int) -> None:
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": str(threads),
            "INFERENCE_NUM_THREADS": str(threads),
            # Pinned threads of several processes would sit on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = ov.Core().compile_model(path, "CPU", config)
        self.dimensions = compiled.output(0).partial_shape[1].get_length()
        self.streams = threads
        self._queue = ov.AsyncInferQueue(compiled, threads)
        self._queue.set_callback(_finished)

    def wait_idle(self) -> None:
        self._queue.get_idle_request_id()

    def start(self, input_ids: Ids, attention_mask: Ids, done: Done) -> None:
        self._queue.start_async({"input_ids": input_ids, "attention_mask": attention_mask}, done)

    def close(self) -> None:
        self._queue.wait_all()


def _finished(request: ov.InferRequest, done: Done) -> None:
    done(request.get_output_tensor(0).data)
