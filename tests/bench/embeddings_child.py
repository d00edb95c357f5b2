"""A library in a process of its own: `python embeddings_child.py BACKEND FOLDER DTYPE`.

The backend is one of sentence-transformers' ("torch", "onnx", "openvino"), or "conversion", which
is OpenVINO alone with the encoder that text_svc has converted. Reads texts as JSON lines, and
writes how many it has embedded, or the vectors after `{"vectors": texts}`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Encode = Callable[[list[str]], Any]
# As many as sentence-transformers takes into a batch.
BATCH = 32


def sentence_transformers(backend: str, folder: str, dtype: str) -> Encode:
    """`encode`, as its users call it; int8 is the export that its manual names for this CPU."""
    import torch
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    options: dict[str, Any] = {}
    if backend == "torch":
        options = {"dtype": getattr(torch, dtype)}
    elif dtype == "int8":
        model = SentenceTransformer(folder, backend="onnx", device="cpu")
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", folder)
        options = {"file_name": "onnx/model_qint8_avx512_vnni.onnx"}
    model = SentenceTransformer(folder, backend=backend, device="cpu", model_kwargs=options)
    return lambda texts: model.encode(texts, show_progress_bar=False)


def conversion(folder: str, dtype: str) -> Encode:
    """Batches of texts of like length, one for each core at a time."""
    import numpy as np
    import openvino as ov
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    cores = len(os.sched_getaffinity(0))
    config = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
        "NUM_STREAMS": cores,
        "INFERENCE_NUM_THREADS": cores,
    }
    (path,) = Path(folder).glob("*.xml")
    queue = ov.AsyncInferQueue(ov.Core().compile_model(path, "CPU", config), cores)

    def encode(texts: list[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found: list[Any] = [None] * len(texts)

        def keep(request: Any, places: list[int]) -> None:
            for place, vector in zip(places, request.get_output_tensor(0).data, strict=True):
                found[place] = vector.copy()

        queue.set_callback(keep)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            batch = tokenizer.encode_batch([texts[place] for place in places])
            ids = np.array([each.ids for each in batch], np.int64)
            mask = np.array([each.attention_mask for each in batch], np.int64)
            queue.start_async({"input_ids": ids, "attention_mask": mask}, places)
        queue.wait_all()
        return np.array(found)

    return encode


def main() -> None:
    """Serves until stdin ends."""
    backend, folder, dtype = sys.argv[1:]
    encode = (
        conversion(folder, dtype)
        if backend == "conversion"
        else sentence_transformers(backend, folder, dtype)
    )
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, dict):
            print(json.dumps(encode(asked["vectors"]).tolist()), flush=True)
        else:
            print(json.dumps(len(encode(asked))), flush=True)


if __name__ == "__main__":
    main()
