"""ml.ModelManagementService: from messages to the domain and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from operator import attrgetter
from typing import Any

import grpc

from ml import common_pb2, model_management_pb2, model_management_pb2_grpc
from ml.internal import store_pb2, store_pb2_grpc, worker_pb2, worker_pb2_grpc
from model_mgmt_svc.demand import Demand
from model_mgmt_svc.desired import DesiredModel
from model_mgmt_svc.files import stream_file
from model_mgmt_svc.life_options import LifeOptions, split_life
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.model_watch import ModelWatch
from model_mgmt_svc.options import usual_options
from model_mgmt_svc.reconciler import Reconciler
from model_mgmt_svc.replicas import LoadedModel
from model_mgmt_svc.resolve import Asked, of_loaded, resolve
from model_mgmt_svc.status import ModelStatus
from shared.errors import OutOfRangeError
from shared.file_options import FILE, FileOptions
from shared.files.client import ModelFiles
from shared.model_ids import (
    ModelId,
    at_revision,
    check_revision,
    parse_model_id,
    split_revision,
)
from shared.pipelines import find_pipeline
from shared.rpc.call_limit import Slots, came_through_envoy
from shared.rpc.handlers import add_changed
from shared.rpc.interceptors import Context
from shared.rpc.watches import Watches
from shared.wire.chunks import EncodedChunk

NAME = "ml.ModelManagementService"


class ModelManagementServicer(
    model_management_pb2_grpc.ModelManagementServiceServicer, store_pb2_grpc.ModelStoreServicer
):
    """Manages models, streams their files, and brings them into the store.

    Args:
        files: the application's model cache, read through this service's own.
        lifecycle: loads and unloads models.
        reconciler: forgets the failures of a model that a caller requests.
        demand: does so, too.
        watch: the states of all models.
        watches: the places of WatchModels, health and reflection streams.
        chunk_bytes: data bytes in one message of GetModelFile.
        max_file_streams: most concurrent GetModelFile calls through Envoy, and of other services.
    """

    def __init__(
        self,
        files: ModelFiles,
        lifecycle: Lifecycle,
        reconciler: Reconciler,
        demand: Demand,
        watch: ModelWatch,
        watches: Watches,
        *,
        chunk_bytes: int,
        max_file_streams: int,
    ) -> None:
        self._files = files
        self._lifecycle = lifecycle
        self._reconciler = reconciler
        self._demand = demand
        self._watch = watch
        self._watches = watches
        self._chunk_bytes = chunk_bytes
        # Apart, so that callers never keep the services from the files that a load needs.
        self._callers = Slots(max_file_streams, "GetModelFile calls")
        self._services = Slots(max_file_streams, "GetModelFile calls of the services")

    async def LoadModel(
        self, request: model_management_pb2.LoadModelRequest, context: Context
    ) -> model_management_pb2.LoadModelResponse:
        named = parse_model_id(request.model_id)
        model_id = self._lifecycle.model_of(named)
        change, options = split_life(usual_options(request.options))
        options = options or dict(self._lifecycle.options_of_evicted(model_id))
        source = FileOptions.of(options).files_of(model_id)
        asked = Asked(request.pipeline_type, request.architecture, options.get(FILE, ""))
        if held := await self._lifecycle.held_as(model_id):
            found = of_loaded(find_pipeline(held), asked)
        else:
            found = await resolve(self._files, source, asked)
        if found.file:
            options |= {FILE: found.file}
        pipeline = found.pipeline
        desired = DesiredModel(model_id, pipeline.name, options, asked.alias_of(pipeline))
        change.check(model_id, pipeline.service)
        await self._lifecycle.check(desired)  # also if it is loaded and needs no options
        self._reconciler.forgive(model_id)
        self._demand.forgive(model_id)
        why = "" if asked.is_just(pipeline) else found.why
        also = f"{named} is an alias of it" if named != model_id else ""
        life = self._lifecycle.life_of(model_id)
        if request.HasField("wait") and not request.wait:
            await self._lifecycle.begin(desired, change)
            self._reconciler.wake()
            status = await self._status(model_id)
            is_ready = status and status.state == model_management_pb2.MODEL_STATE_READY
            now = "is loaded" if is_ready else "is being loaded; WatchModels tells how that goes on"
            message = ". ".join(filter(None, [f"{model_id} {now}", also, why]))
            return model_management_pb2.LoadModelResponse(
                success=True,
                message=message + self._unsaved("may not be loaded again"),
                pipeline_type=pipeline.name,
                status=status,
            )
        model = await self._lifecycle.load(desired, change)
        if change.values:
            await self._reconciler.tell_names()
        changed = _changes(life, self._lifecycle.life_of(model_id))
        notes = [also, why, changed, await self._unconfirmed(source), model.note]
        message = ". ".join([_describe(model), *filter(None, notes)])
        return model_management_pb2.LoadModelResponse(
            success=True,
            message=message + self._unsaved("may not be loaded again"),
            vram_allocated_mb=_mib(model.vram_bytes),
            ram_allocated_mb=_mib(model.ram_bytes),
            weights_mb=_mib(model.weights_bytes),
            cache_mb=_mib(model.cache_bytes),
            cache_limit_mb=_mib(model.cache_limit_bytes),
            pipeline_type=model.pipeline_type,
            status=await self._status(model_id),
        )

    async def UnloadModel(
        self, request: model_management_pb2.UnloadModelRequest, context: Context
    ) -> common_pb2.StatusResponse:
        named = parse_model_id(request.model_id)
        model_id = self._lifecycle.model_of(named)
        stopped = ", and its load is stopped" if self._lifecycle.is_loading(model_id) else ""
        count = await self._lifecycle.unload(model_id)
        where = f" from {count} replicas" if count > 1 else ""
        also = f", which {named} is an alias of," if named != model_id else ""
        unsaved = self._unsaved("may be loaded again")
        message = f"{model_id}{also} is unloaded{where}{stopped}{unsaved}"
        return common_pb2.StatusResponse(success=True, message=message)

    async def GetLoadedModels(
        self, request: common_pb2.EmptyRequest, context: Context
    ) -> model_management_pb2.LoadedModelsResponse:
        return model_management_pb2.LoadedModelsResponse(
            models=[
                model_management_pb2.LoadedModelInfo(
                    model_id=model.model_id,
                    pipeline_type=model.asked_type or model.pipeline_type,
                    canonical_type=model.pipeline_type,
                    vram_mb=_mib(model.vram_bytes),
                    ram_mb=_mib(model.ram_bytes),
                    loaded_at=model.loaded_at,
                    weights_mb=_mib(model.weights_bytes),
                    cache_mb=_mib(model.cache_bytes),
                    cache_limit_mb=_mib(model.cache_limit_bytes),
                )
                for model in await self._lifecycle.loaded()
            ]
        )

    async def ListModels(
        self, request: model_management_pb2.ListModelsRequest, context: Context
    ) -> model_management_pb2.ListModelsResponse:
        now = await self._watch.now()
        return model_management_pb2.ListModelsResponse(
            models=map(_model_status, now.models), sequence=now.sequence
        )

    async def WatchModels(
        self, request: model_management_pb2.WatchModelsRequest, context: Context
    ) -> AsyncIterator[model_management_pb2.WatchModelsResponse]:
        if request.after < 0:
            raise OutOfRangeError("after is below 0", field="after")
        async with self._watches.watch(), aclosing(self._watch.changes(request.after)) as changes:
            async for each in changes:
                yield model_management_pb2.WatchModelsResponse(
                    sequence=each.sequence,
                    models=map(_model_status, each.models),
                    removed=each.removed,
                    complete=each.complete,
                )

    async def GetModelFile(
        self, request: model_management_pb2.ModelFileRequest, context: Context
    ) -> AsyncIterator[EncodedChunk]:
        model_id = parse_model_id(request.model_id)
        source = at_revision(model_id, check_revision(request.revision))
        pieces = stream_file(
            self._files, source, request.file_path, request.offset, self._chunk_bytes
        )
        slots = self._callers if came_through_envoy(context) else self._services
        with slots.slot():
            async with aclosing(pieces):
                async for piece in pieces:
                    yield EncodedChunk(
                        piece.data,
                        piece.offset,
                        piece.total_size,
                        piece.is_last,
                        piece.sha256,
                        piece.revision,
                    )

    async def Provide(
        self, request: store_pb2.ProvideRequest, context: Context
    ) -> AsyncIterator[store_pb2.ProvideResponse]:
        model_id = parse_model_id(request.model_id)
        source = at_revision(model_id, check_revision(request.revision))
        with self._services.slot():
            async with aclosing(self._files.provide(source, request.file_path)) as steps:
                async for step in steps:
                    yield store_pb2.ProvideResponse(
                        bytes_fetched=step.fetched,
                        bytes_total=step.total,
                        sha256=step.sha256,
                        revision=step.revision,
                    )

    async def Absent(
        self, request: store_pb2.AbsentRequest, context: Context
    ) -> store_pb2.AbsentResponse:
        model_id = parse_model_id(request.model_id)
        source = at_revision(model_id, check_revision(request.revision))
        with self._services.slot():
            absent = await self._files.absent(source, request.file_paths)
        return store_pb2.AbsentResponse(file_paths=sorted(absent))

    async def _unconfirmed(self, source: ModelId) -> str:
        """What a caller should know whose file provider may have sent another revision."""
        if await self._files.is_confirmed(source):
            return ""
        _, revision = split_revision(source)
        return (
            f"The file provider does not say that it has sent revision {revision}; one that does "
            "not know revisions sends its default"
        )

    async def _status(self, model_id: ModelId) -> model_management_pb2.ModelStatus | None:
        models = (await self._watch.now()).models
        return next((_model_status(each) for each in models if each.model_id == model_id), None)

    def _unsaved(self, consequence: str) -> str:
        """What a caller should know while the record of the desired models cannot be written."""
        if not (why := self._lifecycle.unsaved):
            return ""
        return f". This cannot be saved ({why}): after a restart of model_mgmt_svc it {consequence}"


def add_servicer(servicer: ModelManagementServicer, server: grpc.aio.Server) -> None:
    """Registers both services of the servicer; its chunks of files are serialised already."""

    def change(method: str, handler: Any) -> Any:
        if method == "GetModelFile":
            return handler._replace(response_serializer=attrgetter("serialized"))
        return handler

    add = model_management_pb2_grpc.add_ModelManagementServiceServicer_to_server
    add_changed(add, servicer, server, NAME, change)
    store_pb2_grpc.add_ModelStoreServicer_to_server(servicer, server)


def _changes(before: LifeOptions | None, after: LifeOptions | None) -> str:
    """A sentence on the options of life that a LoadModel has changed, without a reload."""
    if before is None or after is None or before == after:
        return ""
    changes = after.changes_from(before).items()
    return "Changed: " + ", ".join(f"{name}={value or 'none'}" for name, value in changes)


class ModelDemandServicer(worker_pb2_grpc.ModelDemandServicer):
    """Loads models for the calls of the services that ask for them.

    Args:
        demand: the models that calls wait for.
    """

    def __init__(self, demand: Demand) -> None:
        self._demand = demand

    async def Want(
        self, request: worker_pb2.WantRequest, context: Context
    ) -> worker_pb2.WantResponse:
        await self._demand.want(parse_model_id(request.model_id), request.call)
        return worker_pb2.WantResponse()


def _model_status(status: ModelStatus) -> model_management_pb2.ModelStatus:
    fields = dict(vars(status))
    state = getattr(model_management_pb2, f"MODEL_STATE_{fields.pop('state').name}")
    return model_management_pb2.ModelStatus(state=state, **fields)


def _mib(size: int) -> int:
    """Bytes in MiB, rounded up so that used memory is never 0."""
    return -(-size // (1 << 20))


def _describe(model: LoadedModel) -> str:
    memory = f"{_mib(model.ram_bytes)} MiB of memory"
    if model.vram_bytes:
        memory += f" and {_mib(model.vram_bytes)} MiB on the accelerator"
    where = f" in {model.replicas} replicas" if model.replicas > 1 else ""
    engine = f" on {model.engine}" if model.engine else ""
    loaded = f"{model.model_id} is loaded as {model.pipeline_type}{engine}{where}"
    return f"{loaded}, using {memory}"
