"""A sentence encoder on OpenVINO, converted by `text_svc.convert.encoder`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import openvino as ov
from tokenizers import Tokenizer

from shared.errors import InvalidModelError
from text_svc.formats.json_files import TOKENIZER
from text_svc.formats.manifest import MODEL, Manifest
from text_svc.formats.recipe import Recipe
from text_svc.processes.specs import (
    WorkerReport,
    WorkerSpec,
)
from text_svc.worker.embeddings.encoder import (
    Done,
    Ids,
    LoadedEncoder,
)


class OpenVinoEncoder:
    """An `Encoder` on the CPU.

    Args:
        path: the .xml file; its weights lie beside it.
        precision: "f32" or "bf16", in which the CPU computes.
        threads: cores to use. Each runs batches of its own, which is faster than sharing one.
    """

    def __init__(self, path: Path, *, precision: str, threads: int) -> None:
        config = {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            # Several processes would pin their threads to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        # OpenVINO makes its table of dtypes on the first use, and lets other Python threads run
        # meanwhile. Two threads that meet there wait for each other forever: make it here, in one.
        ov.Type.i64.to_dtype()
        compiled = ov.Core().compile_model(path, "CPU", config)
        self.dimensions = compiled.output(0).partial_shape[1].get_length()
        self.streams = threads
        # One request more than there are streams: a stream that finishes a batch then starts the
        # next one without waiting for Python.
        self._idle: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(threads + 1):
            self._idle.put(compiled.create_infer_request())
        self._next: ov.InferRequest | None = None
        self._pool = ThreadPoolExecutor(threads + 1, thread_name_prefix="encode")

    def wait_idle(self) -> None:
        self._next = self._next or self._idle.get()

    def start(self, input_ids: Ids, attention_mask: Ids, done: Done) -> None:
        self.wait_idle()
        request, self._next = self._next, None
        self._pool.submit(self._run, request, input_ids, attention_mask, done)

    def _run(self, request: ov.InferRequest, ids: Ids, mask: Ids, done: Done) -> None:
        # Not by OpenVINO's asynchronous calls, which do not call back when they fail.
        try:
            inputs = {"input_ids": ids, "attention_mask": mask}
            done(request.infer(inputs, share_inputs=True, share_outputs=True)[0])
        except Exception as error:  # noqa: BLE001  # it is raised in the callers
            done(error)
        finally:
            self._idle.put(request)

    def close(self) -> None:
        self._pool.shutdown()


def load(spec: WorkerSpec, recipe: Recipe) -> LoadedEncoder:
    """Loads the converted model of a spec.

    Raises:
        InvalidModelError: the converted model no longer exists.
    """
    folder = spec.converted
    manifest = Manifest.read(folder) if folder else None
    if folder is None or manifest is None:
        raise InvalidModelError("the converted model no longer exists; load the model again")
    precision = "bf16" if spec.options.dtype == "bfloat16" else "f32"
    return LoadedEncoder(
        OpenVinoEncoder(folder / MODEL, precision=precision, threads=spec.threads),
        Tokenizer.from_file(str(folder / TOKENIZER)),
        manifest.context,
        manifest.pad_token,
        WorkerReport(weights_bytes=manifest.weight_bytes),
    )
