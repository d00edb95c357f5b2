"""ml.internal.ModelWorker: how the control plane drives a service that holds models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict

from ml.internal import worker_pb2, worker_pb2_grpc
from shared.errors import MissingFieldError, UnavailableError
from shared.model_host import (
    HostedModel,
    LoadProgress,
    ModelHost,
    ModelLife,
    ModelNames,
    ModelState,
    Restore,
    Restores,
)
from shared.model_ids import ModelId, parse_model_id
from shared.rpc.admission import Admission
from shared.rpc.drain import Drain
from shared.rpc.epochs import Epochs
from shared.rpc.interceptors import Context

MODEL_WORKER_NAME = worker_pb2.DESCRIPTOR.services_by_name["ModelWorker"].full_name


class ModelWorkerServicer(worker_pb2_grpc.ModelWorkerServicer):
    """Loads, unloads and lists the models of a service, and admits the replica.

    Args:
        admission: whether the service takes calls.
        host: the models; may be set later, and until then calls are UNAVAILABLE.
        restores: takes what the control plane tells of those that come back.
        names: takes what it tells of their other names.
        drain: what people begin and end.
    """

    def __init__(
        self,
        admission: Admission,
        host: ModelHost | None = None,
        restores: Restores | None = None,
        names: ModelNames | None = None,
        drain: Drain | None = None,
    ) -> None:
        self.host = host
        self._admission = admission
        self._restores = restores or Restores()
        self._names = names or ModelNames()
        self._drain = drain or Drain()
        self._epochs = Epochs()

    async def Load(  # noqa: N802
        self, request: worker_pb2.LoadRequest, context: Context
    ) -> AsyncIterator[worker_pb2.LoadResponse]:
        self._epochs.check(context)
        model_id = parse_model_id(request.model_id)
        if not request.pipeline_type:
            raise MissingFieldError("pipeline_type is empty", field="pipeline_type")
        host = self._ready()
        async for progress in host.load(model_id, request.pipeline_type, request.options):
            yield _load_response(progress)
        self._restores.drop(model_id)

    async def Check(  # noqa: N802
        self, request: worker_pb2.LoadRequest, context: Context
    ) -> worker_pb2.CheckResponse:
        self._epochs.check(context)
        options = self._ready().check(request.pipeline_type, request.options)
        return worker_pb2.CheckResponse(options=options)

    async def Unload(  # noqa: N802
        self, request: worker_pb2.UnloadRequest, context: Context
    ) -> worker_pb2.UnloadResponse:
        self._epochs.check(context)
        model_id = parse_model_id(request.model_id)
        if request.HasField("told"):  # first, so that no call finds neither the model nor why
            self._restores.put(_restore(request.told))
        freed = await self._ready().unload(
            model_id, if_idle=request.if_idle, idle_within=request.idle_within_seconds
        )
        if not freed:
            self._restores.drop(model_id)
        return worker_pb2.UnloadResponse(busy=not freed)

    async def List(  # noqa: N802
        self, request: worker_pb2.ListRequest, context: Context
    ) -> worker_pb2.ListResponse:
        self._epochs.check(context)
        self._admission.heartbeat()
        host = self._ready()
        await host.measure()
        return worker_pb2.ListResponse(
            models=map(_model_info, host.models()),
            admitted=self._admission.admitted,
            told=self._restores.told,
            drained=self._drain.drained,
            memory=[worker_pb2.MemoryPool(**asdict(pool)) for pool in host.memory()],
            lives=map(_life_message, self._names.lives),
            waiting_calls={str(model): calls for model, calls in host.waiting_calls().items()},
        )

    async def Admit(  # noqa: N802
        self, request: worker_pb2.AdmitRequest, context: Context
    ) -> worker_pb2.AdmitResponse:
        self._epochs.check(context)
        self._admission.admit()
        return worker_pb2.AdmitResponse()

    async def TellModels(  # noqa: N802
        self, request: worker_pb2.TellModelsRequest, context: Context
    ) -> worker_pb2.TellModelsResponse:
        self._epochs.check(context)
        self._names.replace(map(_life, request.lives))
        restores = map(_restore, request.restores)
        self._restores.replace(restores, auto_load=request.auto_load)
        return worker_pb2.TellModelsResponse()

    async def Drain(  # noqa: N802
        self, request: worker_pb2.DrainRequest, context: Context
    ) -> AsyncIterator[worker_pb2.DrainResponse]:
        self._epochs.check(context)
        self._drain.begin()
        async for progress in self._drain.progress():
            yield worker_pb2.DrainResponse(calls_in_flight=progress.calls, empty=progress.empty)

    async def Undrain(  # noqa: N802
        self, request: worker_pb2.UndrainRequest, context: Context
    ) -> worker_pb2.UndrainResponse:
        self._epochs.check(context)
        self._drain.end()
        return worker_pb2.UndrainResponse()

    def _ready(self) -> ModelHost:
        if self.host is None:
            raise UnavailableError("the service is starting")
        return self.host


def _load_response(progress: LoadProgress) -> worker_pb2.LoadResponse:
    ready = progress.state is ModelState.READY
    return worker_pb2.LoadResponse(
        state=_state(progress.state),
        bytes_fetched=progress.bytes_fetched,
        bytes_total=progress.bytes_total,
        model=_model_info(progress.model) if ready else None,
    )


def _model_info(model: HostedModel) -> worker_pb2.ModelInfo:
    return worker_pb2.ModelInfo(
        model_id=model.model_id,
        pipeline_type=model.pipeline.name,
        state=_state(model.state),
        ram_bytes=model.ram_bytes,
        vram_bytes=model.vram_bytes,
        loaded_at=model.loaded_at,
        reason=model.reason,
        options=model.raw_options,
        engine=model.engine or "",
        note=model.note,
        bytes_fetched=model.bytes_fetched,
        bytes_total=model.bytes_total,
        calls_in_flight=model.calls,
        last_used_at=model.last_used_at,
        load_share=model.load_share if model.state is ModelState.LOADING else None,
        reserved=model.reserved,
        weights_bytes=model.weights_bytes,
        cache_bytes=model.cache_bytes,
        cache_limit_bytes=model.cache_limit_bytes,
        idle_seconds=model.idle_seconds,
    )


def _life(message: worker_pb2.ModelLife) -> ModelLife:
    return ModelLife(
        ModelId(message.model_id), tuple(map(ModelId, message.aliases)), dict(message.options)
    )


def _life_message(life: ModelLife) -> worker_pb2.ModelLife:
    return worker_pb2.ModelLife(model_id=life.model_id, aliases=life.aliases, options=life.options)


def _restore(message: worker_pb2.Restore) -> Restore:
    return Restore(
        ModelId(message.model_id),
        message.wait_seconds,
        message.given_up,
        message.reason,
        message.evicted,
    )


def _state(state: ModelState) -> worker_pb2.ModelState:
    value: worker_pb2.ModelState = getattr(worker_pb2, f"MODEL_STATE_{state.name}")
    return value
