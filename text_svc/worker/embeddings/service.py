"""GenerateEmbeddings and StreamEmbeddings of one model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import cache

from ml import transformers_pb2 as pb
from shared.wire.rows import RowField
from text_svc.link.server import Handlers
from text_svc.worker.embeddings.embedder import Embedder
from text_svc.worker.embeddings.encoder import Vectors
from text_svc.worker.embeddings.ordered import in_order

# Requests of one StreamEmbeddings call that run at once: the model works on the next ones while
# a response is on its way.
STREAM_AHEAD = 4
# Most bytes of vectors in one response of StreamEmbeddings; clients accept 4 MiB by default.
STREAM_RESPONSE_BYTES = 1 << 20


class EmbeddingsHandlers:
    """GenerateEmbeddings and StreamEmbeddings."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def table(self) -> Handlers:
        """The handlers by the names of their RPCs."""
        return {
            "GenerateEmbeddings": self.generate_embeddings,
            "StreamEmbeddings": self.stream_embeddings,
        }

    async def generate_embeddings(
        self, request: pb.GenerateEmbeddingsRequest
    ) -> pb.GeneratedEmbeddingsResponse:
        """One vector per text."""
        vectors, tokens = await self._embed(request)
        return response(vectors, tokens=tokens)

    async def stream_embeddings(
        self, requests: AsyncIterator[pb.GenerateEmbeddingsRequest]
    ) -> AsyncIterator[pb.GeneratedEmbeddingsResponse]:
        """The same for a stream of requests, in parts of at most `STREAM_RESPONSE_BYTES`."""
        first = 0
        results = in_order(self._embed, requests, STREAM_AHEAD)
        async with aclosing(results):
            async for vectors, tokens in results:
                rows = max(STREAM_RESPONSE_BYTES // vectors[0].nbytes, 1)
                for start in range(0, len(vectors), rows):
                    part = vectors[start : start + rows]
                    yield response(part, tokens=0 if start else tokens, first_text=first)
                    first += len(part)

    async def _embed(self, request: pb.GenerateEmbeddingsRequest) -> tuple[Vectors, int]:
        return await self._embedder.embed(
            request.texts, prompt_name=request.prompt_name, dimensions=request.dimensions
        )


def response(
    vectors: Vectors, *, tokens: int, first_text: int = 0
) -> pb.GeneratedEmbeddingsResponse:
    """A response with vectors of shape (texts, dimensions) and the other fields."""
    made = pb.GeneratedEmbeddingsResponse(tokens=tokens, first_text=first_text)
    _vector_field(vectors.shape[1]).append(made, {"values": vectors})
    return made


@cache
def _vector_field(dimensions: int) -> RowField:
    vector = pb.GeneratedEmbedding(values=[1.0] * dimensions)
    sample = pb.GeneratedEmbeddingsResponse(embeddings=[vector])
    # A serialised vector ends with its numbers, which protobuf packs.
    return RowField(sample, {"values": (("<f4", dimensions), -4 * dimensions)})
