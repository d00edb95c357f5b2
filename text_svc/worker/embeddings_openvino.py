"""An encoder on OpenVINO, as `text_svc.export.encoder` converts it."""

from __future__ import annotations

from pathlib import Path

import openvino as ov
from tokenizers import Tokenizer

from shared.errors import InvalidModelError
from text_svc.export.manifest import Manifest
from text_svc.launch import Launch, Report
from text_svc.worker.embeddings_encoder import Done, Ids, LoadedEncoder
from text_svc.worker.embeddings_recipe import Recipe

MODEL = "openvino_model.xml"
TOKENIZER = "tokenizer.json"


class OpenVinoEncoder:
    """See `Encoder`.

    Args:
        path: the .xml file; the weights lie beside it.
        precision: "f32" or "bf16", in which the CPU computes.
        threads: cores to use; each runs a batch of its own, which wastes less than sharing one.
    """

    def __init__(self, path: Path, *, precision: str, threads: int) -> None:
        config = {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            # Pinned threads of several processes would sit on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = ov.Core().compile_model(path, "CPU", config)
        self.dimensions = compiled.output(0).partial_shape[1].get_length()
        self.streams = threads
        # One more than run: a stream that ends a batch finds the next without waiting for Python.
        self._queue = ov.AsyncInferQueue(compiled, threads + 1)
        self._queue.set_callback(_finished)

    def wait_idle(self) -> None:
        self._queue.get_idle_request_id()

    def start(self, input_ids: Ids, attention_mask: Ids, done: Done) -> None:
        self._queue.start_async({"input_ids": input_ids, "attention_mask": attention_mask}, done)

    def close(self) -> None:
        self._queue.wait_all()


def _finished(request: ov.InferRequest, done: Done) -> None:
    done(request.get_output_tensor(0).data)


def load(launch: Launch, recipe: Recipe) -> LoadedEncoder:
    """Loads the converted model of a launch command.

    Raises:
        InvalidModelError: it is gone.
    """
    folder = launch.converted
    manifest = Manifest.read(folder) if folder else None
    if folder is None or manifest is None:
        raise InvalidModelError("the converted model is gone; load the model again")
    precision = "bf16" if launch.options.dtype == "bfloat16" else "f32"
    return LoadedEncoder(
        OpenVinoEncoder(folder / MODEL, precision=precision, threads=launch.threads),
        Tokenizer.from_file(str(folder / TOKENIZER)),
        manifest.context,
        manifest.pad_token,
        Report(ram_bytes=manifest.weight_bytes),
    )
