"""ml.TransformersService: each call goes to the process of its model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc
from text_svc.metrics import observe
from text_svc.models.registry import Registry

NAME = pb.DESCRIPTOR.services_by_name["TransformersService"].full_name


class TransformersServicer(transformers_pb2_grpc.TransformersServiceServicer):
    """Forwards each call to the process of its model, which checks the rest of the request."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def GenerateText(self, request: pb.TextRequest, context: Any) -> AsyncIterator[pb.TextResponse]:
        return self._stream("GenerateText", request, request.model, context)

    def ChatCompletion(
        self, request: pb.ChatRequest, context: Any
    ) -> AsyncIterator[pb.ChatResponse]:
        return self._stream("ChatCompletion", request, request.model, context)

    async def GenerateEmbeddings(
        self, request: pb.GenerateEmbeddingsRequest, context: Any
    ) -> pb.GeneratedEmbeddingsResponse:
        response: pb.GeneratedEmbeddingsResponse = await self._unary(
            "GenerateEmbeddings", request, context
        )
        return response

    async def StreamEmbeddings(
        self, request_iterator: AsyncIterator[pb.GenerateEmbeddingsRequest], context: Any
    ) -> AsyncIterator[pb.GeneratedEmbeddingsResponse]:
        async with aclosing(self._both("StreamEmbeddings", request_iterator, context)) as responses:
            async for response in responses:
                yield response

    async def TranscribeStream(
        self, request_iterator: AsyncIterator[pb.TranscribeRequest], context: Any
    ) -> AsyncIterator[pb.TranscribeResponse]:
        async with aclosing(self._both("TranscribeStream", request_iterator, context)) as responses:
            async for response in responses:
                yield response

    async def Infer(self, request: pb.InferRequest, context: Any) -> pb.InferResponse:
        response: pb.InferResponse = await self._unary("Infer", request, context)
        return response

    async def _unary(self, call: str, request: Any, context: Any) -> Any:
        async with self._registry.use(request.model, call) as process:
            response = await process.unary(call, request, context.time_remaining())
        observe(request.model, response)
        return response

    async def _stream(
        self, call: str, request: Any, model: str, context: Any
    ) -> AsyncGenerator[Any, None]:
        async with (
            self._registry.use(model, call) as process,
            aclosing(process.stream(call, request, context.time_remaining())) as responses,
        ):
            async for response in responses:
                observe(model, response)
                yield response

    async def _both(
        self, call: str, requests: AsyncIterator[Any], context: Any
    ) -> AsyncGenerator[Any, None]:
        """A call with streams both ways; its first request names the model."""
        first = await anext(requests, None)
        if first is None:
            return
        chained = _chain(first, requests)
        async with aclosing(self._stream(call, chained, first.model, context)) as responses:
            async for response in responses:
                yield response


async def _chain(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for item in rest:
        yield item
