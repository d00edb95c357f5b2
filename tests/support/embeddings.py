"""Vectors of an embedding model: of the service's pipeline, and of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ml import transformers_pb2 as pb
from text_svc.convert import encoder


def expected(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    vectors: np.ndarray = SentenceTransformer(str(folder), device="cpu").encode(texts, **options)
    return vectors


def converted(folder: Path, weights: Any = "float") -> dict[str, Any]:
    """Fields of a spec that runs the model on OpenVINO."""
    target = folder / f"converted-{weights}"
    target.mkdir()
    encoder.convert(folder, target, weights).write(target)
    return {"engine": "openvino", "converted": target}


async def embed(stub: Any, texts: list[str], **fields: Any) -> np.ndarray:
    answer = await stub.GenerateEmbeddings(pb.GenerateEmbeddingsRequest(texts=texts, **fields))
    return np.array([each.values for each in answer.embeddings], np.float32)
