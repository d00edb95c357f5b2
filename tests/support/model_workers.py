"""A small ModelWorker as a real gRPC server: it holds figures instead of weights."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ml.internal import worker_pb2 as pb
from ml.internal import worker_pb2_grpc as pb_grpc
from shared.errors import (
    CallCancelledError,
    ModelNotLoadedError,
    OutOfMemoryError,
    ServiceError,
    UnknownOptionError,
)
from shared.model_host import HOST, format_needs
from shared.rpc.epochs import EPOCH_KEY
from shared.rpc.interceptors import ErrorInterceptor

# Its options.
DEFAULTS = {"dtype": "float32", "engine": "openvino"}
RAM, VRAM = 90 * (1 << 20) + 1, 0
# What a model needs where memory is counted.
NEEDS = {HOST: 40}


class ModelWorker(pb_grpc.ModelWorkerServicer):
    """Loads and frees at once, unless told to wait (`go_on`, `frees`) or to fail (`failures`).

    An unload ends a load in flight, whenever the client's cancellation of it comes.

    Attributes:
        budgets: bytes by device; without any it counts no memory.
        needs: bytes by device that a model needs, if not `NEEDS`.
        holds: models whose loads wait for an event before they reserve their memory.
        fails_loading: models whose loads fail after they have reserved their memory.
        before_unload: called with a model before it is asked whether it may go.
    """

    def __init__(self) -> None:
        self.models: dict[str, pb.ModelInfo] = {}
        self.loads: list[pb.LoadRequest] = []
        self.unloads: list[str] = []
        self._ended: Counter[str] = Counter()  # how often loads in flight were ended by an unload
        self.told: list[pb.Restore] = []
        self.lives: list[pb.ModelLife] = []
        self.failures: list[ServiceError] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.reads_weights = asyncio.Event()  # after the memory is reserved
        self.reads_weights.set()
        self.answers_lists = asyncio.Event()
        self.answers_lists.set()
        self.lists = 0
        self.frees = asyncio.Event()
        self.frees.set()
        self.budgets: dict[str, int] = {}
        self.needs: dict[str, dict[str, int]] = {}
        self.holds: dict[str, asyncio.Event] = {}
        self.fails_loading: dict[str, ServiceError] = {}
        self.before_unload: dict[str, Callable[[pb.ModelInfo], object]] = {}
        self.cancelled = 0
        self.admitted = False
        self.drained = False
        self.was_told = False
        self.epochs: list[int] = []  # in the order in which they were seen
        self.health = health.aio.HealthServicer()
        self.address = ""

    async def Load(self, request, context):
        self.loads.append(request)
        ended = self._ended[request.model_id]
        try:
            yield pb.LoadResponse(state=pb.MODEL_STATE_FETCHING, bytes_fetched=1, bytes_total=2)
            await self.go_on.wait()
            if hold := self.holds.get(request.model_id):
                await hold.wait()
        except (asyncio.CancelledError, GeneratorExit):  # the latter while the response is sent
            self.cancelled += 1
            raise
        if self.failures:
            raise self.failures.pop(0)
        reserved = await self._reserve(request) if self.budgets else {}
        if self._ended[request.model_id] != ended:
            self.models.pop(request.model_id, None)
            raise CallCancelledError("unloaded while it was loading")
        model = pb.ModelInfo(
            model_id=request.model_id,
            pipeline_type=request.pipeline_type,
            state=pb.MODEL_STATE_READY,
            ram_bytes=RAM,
            vram_bytes=VRAM,
            loaded_at=1_700_000_000 + len(self.loads) - 1,
            options=request.options,
            reserved=reserved,
        )
        self.models[request.model_id] = model
        yield pb.LoadResponse(state=pb.MODEL_STATE_READY, model=model)

    async def Check(self, request, context):
        if unknown := set(request.options) - {*DEFAULTS, "file", "revision"}:
            raise UnknownOptionError(f"unknown option {min(unknown)!r}", field="options")
        return pb.CheckResponse(options=DEFAULTS | dict(request.options))

    async def Unload(self, request, context):
        self.unloads.append(request.model_id)
        model = self.models.get(request.model_id)
        if model is not None and (hook := self.before_unload.get(request.model_id)):
            hook(model)
        if request.if_idle and model is not None:
            if model.calls_in_flight or model.state != pb.MODEL_STATE_READY:
                return pb.UnloadResponse(busy=True)
            model.state = pb.MODEL_STATE_UNLOADING
        if request.HasField("told"):
            self.told = [each for each in self.told if each.model_id != request.model_id]
            self.told.append(request.told)
        await self.frees.wait()
        if not request.if_idle:  # the client's cancellation of a load may come later
            self._ended[request.model_id] += 1
        if self.models.pop(request.model_id, None) is None:
            raise ModelNotLoadedError("not loaded")
        return pb.UnloadResponse()

    async def List(self, request, context):
        self.lists += 1
        for key, value in context.invocation_metadata():
            if key == EPOCH_KEY and int(value) not in self.epochs:
                self.epochs.append(int(value))
        await self.answers_lists.wait()
        memory = [
            pb.MemoryPool(device=device, budget_bytes=size, reserved_bytes=self.reserved(device))
            for device, size in self.budgets.items()
        ]
        return pb.ListResponse(
            models=self.models.values(),
            admitted=self.admitted,
            drained=self.drained,
            told=self.was_told,
            lives=self.lives,
            memory=memory,
        )

    async def TellModels(self, request, context):
        self.was_told = True
        self.told = list(request.restores)
        self.lives = list(request.lives)
        return pb.TellModelsResponse()

    def reserved(self, device: str = HOST) -> int:
        """Bytes of a device that its models have reserved."""
        return sum(model.reserved.get(device, 0) for model in self.models.values())

    async def _reserve(self, request: pb.LoadRequest) -> Mapping[str, int]:
        """The memory that a model gets, after some time in which it is LOADING."""
        needs = self.needs.get(request.model_id, NEEDS)
        for device, needed in needs.items():
            free = self.budgets[device] - self.reserved(device)
            if needed > free:
                raise OutOfMemoryError(
                    f"model {request.model_id} needs {needed}, but {free} are free",
                    metadata={"needed_bytes": str(needed), "needs": format_needs(needs)},
                )
        loading = pb.ModelInfo(
            model_id=request.model_id, state=pb.MODEL_STATE_LOADING, reserved=needs
        )
        self.models[request.model_id] = loading
        try:
            await asyncio.sleep(0.01)
            await self.reads_weights.wait()
            if request.model_id in self.fails_loading:
                raise self.fails_loading[request.model_id]
        except BaseException:
            if self.models.get(request.model_id) is loading:
                del self.models[request.model_id]
            raise
        return needs

    def die(self, model_id: str) -> None:
        """The process of a model ends, as text_svc tells it."""
        model = self.models[model_id]
        model.state, model.reason = pb.MODEL_STATE_FAILED, "its process ended"

    async def Admit(self, request, context):
        self.admitted = True
        return pb.AdmitResponse()

    async def say(self, name: str, serving: bool) -> None:
        """Sets its health."""
        status = health_pb2.HealthCheckResponse
        await self.health.set(name, status.SERVING if serving else status.NOT_SERVING)

    @contextlib.asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[ModelWorker]:
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)]
        )
        pb_grpc.add_ModelWorkerServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()
        self.address = f"127.0.0.1:{port}"
        try:
            yield self
        finally:
            await self.stop()

    def restart(self) -> None:
        """Forgets everything, as a new process would."""
        self.models.clear()
        self.loads.clear()
        self.lives = []
        self.admitted = False

    async def stop(self) -> None:
        """Breaks off all calls and closes the port."""
        await self._server.stop(None)
