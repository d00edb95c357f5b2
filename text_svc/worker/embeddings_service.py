"""GenerateEmbeddings of one model: checks the request, runs it, shapes the answer."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc
from shared.errors import InputTooLargeError, MissingFieldError
from text_svc.launch import Launch
from text_svc.worker.checks import check_sizes
from text_svc.worker.embeddings import Embedder


class EmbeddingsServicer(transformers_pb2_grpc.TransformersServiceServicer):
    """GenerateEmbeddings."""

    def __init__(self, embedder: Embedder, launch: Launch) -> None:
        self._embedder = embedder
        self._launch = launch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")

    async def GenerateEmbeddings(
        self, request: pb.GenerateEmbeddingsRequest, context: Any
    ) -> pb.GeneratedEmbeddingsResponse:
        texts, limit = list(request.texts), self._launch.max_texts
        if not texts:
            raise MissingFieldError("texts is empty", field="texts")
        if len(texts) > limit:
            raise InputTooLargeError(
                f"{len(texts)} texts are over the limit of {limit} a call",
                metadata={"limit": str(limit)},
            )
        check_sizes(texts, "texts", self._launch.max_prompt_bytes, empty=True)
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(self._thread, self._embedder.embed, texts)
        return pb.GeneratedEmbeddingsResponse(
            embeddings=[pb.GeneratedEmbedding(values=vector) for vector in vectors]
        )
