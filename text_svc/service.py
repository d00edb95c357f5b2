"""The two services of text_svc: the public one, and the one that the control plane drives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc
from ml.internal import worker_pb2, worker_pb2_grpc
from shared.errors import MissingFieldError
from shared.rpc.admission import Admission
from text_svc.metrics import observe
from text_svc.models.model import Model
from text_svc.models.registry import Registry

NAME = pb.DESCRIPTOR.services_by_name["TransformersService"].full_name
WORKER_NAME = worker_pb2.DESCRIPTOR.services_by_name["ModelWorker"].full_name


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


class ModelWorkerServicer(worker_pb2_grpc.ModelWorkerServicer):
    """Loads, unloads and lists the models of this service."""

    def __init__(self, registry: Registry, admission: Admission) -> None:
        self._registry = registry
        self._admission = admission

    async def Load(
        self, request: worker_pb2.LoadRequest, context: Any
    ) -> AsyncIterator[worker_pb2.LoadResponse]:
        if not request.pipeline_type:
            raise MissingFieldError("pipeline_type is empty", field="pipeline_type")
        async for model in self._registry.load(
            request.model_id, request.pipeline_type, request.options
        ):
            yield _load_response(model)

    async def Unload(
        self, request: worker_pb2.UnloadRequest, context: Any
    ) -> worker_pb2.UnloadResponse:
        await self._registry.unload(request.model_id)
        return worker_pb2.UnloadResponse()

    async def List(self, request: worker_pb2.ListRequest, context: Any) -> worker_pb2.ListResponse:
        self._admission.hear()
        return worker_pb2.ListResponse(
            models=map(_model_info, self._registry.models()), admitted=self._admission.admitted
        )

    async def Admit(
        self, request: worker_pb2.AdmitRequest, context: Any
    ) -> worker_pb2.AdmitResponse:
        self._admission.admit()
        return worker_pb2.AdmitResponse()


def _state(model: Model) -> worker_pb2.ModelState:
    state: worker_pb2.ModelState = getattr(worker_pb2, f"MODEL_STATE_{model.state.name}")
    return state


def _load_response(model: Model) -> worker_pb2.LoadResponse:
    state = _state(model)
    return worker_pb2.LoadResponse(
        state=state,
        bytes_fetched=model.bytes_fetched,
        bytes_total=model.bytes_total,
        model=_model_info(model) if state == worker_pb2.MODEL_STATE_READY else None,
    )


def _model_info(model: Model) -> worker_pb2.ModelInfo:
    return worker_pb2.ModelInfo(
        model_id=model.model_id,
        pipeline_type=model.pipeline.name,
        state=_state(model),
        ram_bytes=model.ram_bytes,
        vram_bytes=model.vram_bytes,
        loaded_at=model.loaded_at,
        reason=model.reason,
        options=model.raw_options,
        engine=model.engine or "",
        note=model.note,
    )
