"""GenerateEmbeddings and StreamEmbeddings of one model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np

from ml import transformers_pb2 as pb
from text_svc.link.server import Handlers
from text_svc.worker.embeddings.embedder import Embedder
from text_svc.worker.embeddings.encoder import Vectors
from text_svc.worker.embeddings.ordered import in_order

# Requests of one StreamEmbeddings call that are worked on at once: the model has the next while
# the answer to one is on its way.
STREAM_AHEAD = 4
# Bytes of vectors in one answer of StreamEmbeddings: clients take 4 MiB by default.
STREAM_ANSWER_BYTES = 1 << 20

# Tags of the field `embeddings` (1) of the response and of `values` (1), both length-delimited.
_TAG = b"\x0a"


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
        """The same for a stream of requests, in parts of at most `STREAM_ANSWER_BYTES`."""
        first = 0
        answers = in_order(self._embed, requests, STREAM_AHEAD)
        async with aclosing(answers):
            async for vectors, tokens in answers:
                rows = max(STREAM_ANSWER_BYTES // vectors[0].nbytes, 1)
                for start in range(0, len(vectors), rows):
                    part = vectors[start : start + rows]
                    yield response(part, tokens=0 if start else tokens, first_text=first)
                    first += len(part)

    async def _embed(self, request: pb.GenerateEmbeddingsRequest) -> tuple[Vectors, int]:
        return await self._embedder.embed(
            request.texts, prompt_name=request.prompt_name, dimensions=request.dimensions
        )


def response(vectors: Vectors, **fields: Any) -> pb.GeneratedEmbeddingsResponse:
    """A response with these vectors, shape (texts, dimensions), and other fields.

    The vectors are written as the wire has them, which is how NumPy has them too: for 512 texts
    of 384 numbers 0.15 ms, where the constructor takes 31 ms.
    """
    row = np.ascontiguousarray(vectors, "<f4").view(np.uint8)
    values = _TAG + _varint(row.shape[1])
    head = _TAG + _varint(len(values) + row.shape[1]) + values
    wire = np.empty((len(row), len(head) + row.shape[1]), np.uint8)
    wire[:, : len(head)] = np.frombuffer(head, np.uint8)
    wire[:, len(head) :] = row
    made = pb.GeneratedEmbeddingsResponse(**fields)
    made.MergeFromString(wire.tobytes())
    return made


def _varint(number: int) -> bytes:
    """A number in protobuf's base 128, low bits first."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
