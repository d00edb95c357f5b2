"""The replicas of the services that hold models: a client for each, and the models they hold."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self, cast

import grpc

from ml.internal import worker_pb2, worker_pb2_grpc
from model_mgmt_svc.lease import Lease
from shared.errors import (
    InternalError,
    ServiceError,
    ShuttingDownError,
    UnavailableError,
    WorkerUnavailableError,
)
from shared.model_host import MemoryPool, ModelLife, ModelState, Restore
from shared.model_ids import ModelId
from shared.pipelines import ServiceName
from shared.rpc.channels import connect
from shared.rpc.epochs import EPOCH_KEY, passed_by
from shared.rpc.status import from_details
from shared.telemetry.tracing import outgoing_metadata

log = logging.getLogger(__name__)

# Timeout of listing a replica's models: the longest delay that a dead one causes.
LIST_SECONDS = 2.0
# Longer than a channel waits between attempts to connect (shared.rpc.channels), so that a replica
# that has just come back is found.
CONNECT_SECONDS = 2.5

# Statuses of a call whose process died, or did not answer in time.
_DOWN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


_STATES = {
    value: ModelState[name.removeprefix("MODEL_STATE_")]
    for name, value in worker_pb2.ModelState.items()
    if value != worker_pb2.MODEL_STATE_UNSPECIFIED
}


@dataclass(frozen=True)
class ReplicaModel:
    """A model on one replica. Memory in bytes, `loaded_at` and `last_used_at` in Unix seconds.

    `engine` runs it; `note` is a sentence for the caller who loads it, often empty; `options` are
    those that it was loaded with; `reason` says why it has failed; of its `bytes_total` of files,
    `bytes_fetched` are there; `calls` is what it answers now; `idle_seconds` is how long it has had
    no call in flight since it is READY; `reserved` are its bytes by device.
    `weights_bytes` and `cache_bytes`, what its key-value cache has taken of at most
    `cache_limit_bytes`, are parts of its memory.
    """

    model_id: ModelId
    pipeline_type: str
    state: ModelState
    ram_bytes: int = 0
    vram_bytes: int = 0
    loaded_at: int = 0
    engine: str = ""
    note: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    bytes_fetched: int = 0
    bytes_total: int = 0
    calls: int = 0
    last_used_at: float = 0.0
    load_share: float | None = None
    reserved: Mapping[str, int] = field(default_factory=dict)
    weights_bytes: int = 0
    cache_bytes: int = 0
    cache_limit_bytes: int = 0
    idle_seconds: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether it answers calls."""
        return self.state is ModelState.READY

    @property
    def died(self) -> bool:
        """Whether it was ready, and its process has ended."""
        return bool(self.reason and self.loaded_at)


@dataclass(frozen=True)
class LoadedModel:
    """A model over all replicas that hold it; memory is their sum, in bytes.

    `loaded_at` is the Unix time in seconds since when the first of them holds it. `engine`, `note`
    and `options` are those of the first one: what runs it, a sentence for the caller who loads it,
    and what it was loaded with. `asked_type` is as in `DesiredModel`.
    """

    model_id: ModelId
    pipeline_type: str
    ram_bytes: int
    vram_bytes: int
    loaded_at: int
    replicas: int
    engine: str = ""
    note: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    asked_type: str = ""
    weights_bytes: int = 0
    cache_bytes: int = 0
    cache_limit_bytes: int = 0

    @classmethod
    def over(cls, models: Sequence[ReplicaModel]) -> LoadedModel:
        """One model, from what its replicas report of it."""
        return cls(
            model_id=models[0].model_id,
            pipeline_type=models[0].pipeline_type,
            ram_bytes=sum(model.ram_bytes for model in models),
            vram_bytes=sum(model.vram_bytes for model in models),
            loaded_at=min(model.loaded_at for model in models),
            replicas=len(models),
            engine=models[0].engine,
            note=models[0].note,
            options=models[0].options,
            weights_bytes=sum(model.weights_bytes for model in models),
            cache_bytes=sum(model.cache_bytes for model in models),
            cache_limit_bytes=sum(model.cache_limit_bytes for model in models),
        )


class Replica:
    """One process of a service that holds models.

    Args:
        lease: without it nothing is sent, and its epoch is in every call; None sends none.

    Attributes:
        admitted: whether it takes calls, as of the last `list`.
        told: whether `tell_models` has been called since it started, as of the last `list`.
        drained: whether somebody has drained it by hand, as of the last `list`.
        died: the models whose processes have ended by themselves, as of the last `list`.
        memory: its memory by device, as of the last `list`; empty if it does not count it.
        lives: what it was told of options of life, as of the last `list`.
        waiting_calls: how many calls wait for models to be loaded, as of the last `list`.
    """

    def __init__(self, service: ServiceName, address: str, lease: Lease | None = None) -> None:
        self.service = service
        self.address = address
        self.admitted = True
        self.told = True
        self.drained = False
        self._lease = lease
        self.died: list[ReplicaModel] = []
        self.memory: Mapping[str, MemoryPool] = {}
        self.lives: list[ModelLife] = []
        self.waiting_calls: Mapping[ModelId, int] = {}
        self._seen_at = time.monotonic()
        self.channel = connect(address)
        self._stub = worker_pb2_grpc.ModelWorkerStub(self.channel)

    @property
    def silent_seconds(self) -> float:
        """Time since it last listed its models, or since it is known."""
        return time.monotonic() - self._seen_at

    async def load(
        self, model_id: ModelId, pipeline_type: str, options: Mapping[str, str]
    ) -> ReplicaModel:
        """Loads a model and returns what was measured.

        Cancelling the call leaves it to the replica when to end the load; `unload` ends it at once.

        Raises:
            WorkerUnavailableError: the replica is down or went away.
            ServiceError: what the replica raised.
        """
        request = worker_pb2.LoadRequest(
            model_id=model_id, pipeline_type=pipeline_type, options=options
        )
        model = None
        call = self._stub.Load(request, metadata=await self._metadata())
        try:
            async with self._errors():
                async for progress in call:
                    log.debug(
                        "load progress",
                        extra={
                            "model_id": model_id,
                            "state": progress.state,
                            "bytes_fetched": progress.bytes_fetched,
                            "bytes_total": progress.bytes_total,
                        },
                    )
                    model = progress.model if progress.HasField("model") else None
        finally:
            # A task that is cancelled when the request has just been sent leaves its call open.
            call.cancel()
        if model is None or model.state != worker_pb2.MODEL_STATE_READY:
            raise InternalError(f"{self.service}_svc ended a load without reporting READY")
        return _replica_model(model)

    async def check(self, pipeline_type: str, options: Mapping[str, str]) -> Mapping[str, str]:
        """All options that a load would have, with the values of those that are not given.

        Raises:
            InvalidArgumentError: the pipeline type or an option is not valid.
            WorkerUnavailableError: the replica is down, or did not answer in time.
        """
        request = worker_pb2.LoadRequest(pipeline_type=pipeline_type, options=options)
        async with self._errors():
            try:
                answer = await self._stub.Check(
                    request, timeout=LIST_SECONDS, metadata=await self._metadata()
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return options  # of an earlier version
                raise
        return dict(answer.options)

    async def unload(
        self,
        model_id: ModelId,
        *,
        if_idle: bool = False,
        idle_within: float = 0,
        told: Restore | None = None,
    ) -> bool:
        """Frees a model after its running calls; with `if_idle` only if it is READY and has none.

        Returns whether it was freed.

        Args:
            model_id: the model.
            if_idle: see above.
            idle_within: with `if_idle`, seconds for which it takes no calls until it has none.
            told: what its callers are told afterwards, see `tell_models`.

        Raises:
            As `load`.
        """
        request = worker_pb2.UnloadRequest(
            model_id=model_id,
            if_idle=if_idle,
            idle_within_seconds=idle_within,
            told=worker_pb2.Restore(**asdict(told)) if told else None,
        )
        async with self._errors():
            answer = await self._stub.Unload(request, metadata=await self._metadata())
        return not answer.busy

    async def list(self, wait_seconds: float = 0) -> list[ReplicaModel]:
        """The models that it holds.

        Args:
            wait_seconds: how long to wait for a connection; with 0, fails at once if there is none.

        Raises:
            WorkerUnavailableError: it is down, or did not answer in time.
        """
        async with self._errors():
            try:
                answer = await self._stub.List(
                    worker_pb2.ListRequest(),
                    timeout=wait_seconds or LIST_SECONDS,
                    wait_for_ready=wait_seconds > 0,
                    metadata=await self._metadata(),
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return []  # a service without models to manage
                raise
        self._seen_at = time.monotonic()
        self.admitted, self.drained, self.told = answer.admitted, answer.drained, answer.told
        models = [_replica_model(model) for model in answer.models]
        self.died = [model for model in models if model.died]
        self.memory = {
            pool.device: MemoryPool(pool.device, pool.budget_bytes, pool.reserved_bytes)
            for pool in answer.memory
        }
        self.waiting_calls = {ModelId(key): calls for key, calls in answer.waiting_calls.items()}
        self.lives = [
            ModelLife(ModelId(life.model_id), tuple(map(ModelId, life.aliases)), dict(life.options))
            for life in answer.lives
        ]
        return models

    async def admit(self) -> None:
        """Lets it take calls.

        Raises:
            WorkerUnavailableError: it is down, or did not answer in time.
        """
        async with self._errors():
            await self._stub.Admit(
                worker_pb2.AdmitRequest(), timeout=LIST_SECONDS, metadata=await self._metadata()
            )
        self.admitted = True
        log.info("replica admitted", extra={"upstream": self.service, "address": self.address})

    async def tell_models(
        self, restores: Iterable[Restore], lives: Iterable[ModelLife], *, auto_load: bool = False
    ) -> None:
        """Tells it which models that it lacks are to come back, and the other names of all.

        Args:
            restores: those that come back.
            lives: the other names.
            auto_load: whether models may be loaded for the calls that ask for them.

        Raises:
            WorkerUnavailableError: it is down, or did not answer in time.
        """
        async with self._errors():
            request = worker_pb2.TellModelsRequest(
                restores=[worker_pb2.Restore(**asdict(restore)) for restore in restores],
                lives=[worker_pb2.ModelLife(**asdict(life)) for life in lives],
                auto_load=auto_load,
            )
            try:
                await self._stub.TellModels(
                    request, timeout=LIST_SECONDS, metadata=await self._metadata()
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:  # of an earlier version
                    raise

    async def _metadata(self) -> tuple[tuple[str, str], ...]:
        """Of a call, with the epoch; raises ShuttingDownError if another process has taken over."""
        if self._lease is None:
            return outgoing_metadata()
        await self._lease.check()
        epoch = ((EPOCH_KEY, str(self._lease.epoch)),) if self._lease.epoch else ()
        return outgoing_metadata() + epoch

    @contextlib.asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        """Maps gRPC errors of a call to `ServiceError`s."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raised = self._error(error)
            if self._lease and (epoch := passed_by(raised)):
                await self._lease.passed(epoch)
                raised = ShuttingDownError("another model_mgmt_svc has taken over: try again")
            raise raised from error
        except grpc.aio.UsageError as error:  # the channel is closed: the replica was removed
            raise self._down() from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            # Nobody cancelled this task: the channel was closed during the call.
            raise self._down() from error

    def _error(self, error: grpc.aio.AioRpcError) -> ServiceError:
        if ours := from_details(error):
            return ours
        if error.code() in _DOWN:
            return self._down()
        log.error("unexpected status of a replica", exc_info=error)
        return InternalError(f"{self.service}_svc failed with status {error.code().name}")

    def _down(self) -> WorkerUnavailableError:
        return WorkerUnavailableError(f"{self.service}_svc, which runs the model, is not reachable")


def _replica_model(model: worker_pb2.ModelInfo) -> ReplicaModel:
    return ReplicaModel(
        model_id=ModelId(model.model_id),
        pipeline_type=model.pipeline_type,
        state=_STATES.get(model.state, ModelState.FAILED),
        ram_bytes=model.ram_bytes,
        vram_bytes=model.vram_bytes,
        loaded_at=model.loaded_at,
        engine=model.engine,
        note=model.note,
        options=dict(model.options),
        reason=model.reason,
        bytes_fetched=model.bytes_fetched,
        bytes_total=model.bytes_total,
        calls=model.calls_in_flight,
        last_used_at=model.last_used_at,
        load_share=model.load_share if model.HasField("load_share") else None,
        reserved=dict(model.reserved),
        weights_bytes=model.weights_bytes,
        cache_bytes=model.cache_bytes,
        cache_limit_bytes=model.cache_limit_bytes,
        idle_seconds=model.idle_seconds,
    )


class Replicas:
    """All replicas of all services; host names are resolved again on each `refresh`.

    An async context manager that closes the connections.

    Args:
        addresses: "host:port" of each service, several separated by commas.
        lease: as of `Replica`.
    """

    def __init__(self, addresses: Mapping[ServiceName, str], lease: Lease | None = None) -> None:
        self._lease = lease
        self._targets = [
            (service, target.strip())
            for service, text in addresses.items()
            for target in text.split(",")
            if target.strip()
        ]
        # By service, configured target and address.
        self._replicas: dict[tuple[ServiceName, str, str], Replica] = {}

    async def __aenter__(self) -> Self:
        await self.refresh()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close(self._replicas.values())

    def of(self, service: ServiceName) -> list[Replica]:
        """The known replicas of a service, reachable or not."""
        return [replica for replica in self._replicas.values() if replica.service == service]

    def all(self) -> list[Replica]:
        """The known replicas of all services."""
        return list(self._replicas.values())

    async def refresh(self) -> None:
        """Resolves the host names again and drops replicas whose address is gone."""
        found = await asyncio.gather(*(_addresses(target) for _, target in self._targets))
        current = set()
        for (service, target), addresses in zip(self._targets, found, strict=True):
            known = [key[2] for key in self._replicas if key[:2] == (service, target)]
            # While a name cannot be resolved, its earlier addresses may still be alive.
            current |= {(service, target, each) for each in addresses or known or [target]}
        gone = [self._replicas.pop(key) for key in set(self._replicas) - current]
        for service, target, address in sorted(current - set(self._replicas)):
            self._replicas[service, target, address] = Replica(service, address, self._lease)
        await self._close(gone)

    async def _close(self, replicas: Iterable[Replica]) -> None:
        await asyncio.gather(*(replica.channel.close() for replica in replicas))


async def list_models(
    replicas: Sequence[Replica], wait_seconds: float = 0
) -> dict[Replica, list[ReplicaModel]]:
    """The models of each replica that answers, see `Replica.list`; the others are left out."""
    answers = await asyncio.gather(
        *(replica.list(wait_seconds) for replica in replicas), return_exceptions=True
    )
    models_of = {}
    for replica, answer in zip(replicas, answers, strict=True):
        if isinstance(answer, list):
            models_of[replica] = answer
        elif not isinstance(answer, ServiceError):
            raise answer
        elif not isinstance(answer, UnavailableError):
            log.error("a replica cannot list its models", extra={"error": answer.message})
    return models_of


async def _addresses(target: str) -> list[str]:
    """The addresses of "host:port"; none if the name cannot be resolved now."""
    host, _, port = target.rpartition(":")
    if not host or target.startswith("unix:"):
        return [target]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        log.warning("cannot resolve a host name", extra={"target": target, "error": str(error)})
        return []
    # Only one family: "localhost" has an address in each and is one process.
    family = min(entry[0] for entry in found)
    pairs = {cast("tuple[str, int]", entry[4][:2]) for entry in found if entry[0] == family}
    return [f"[{ip}]:{number}" if ":" in ip else f"{ip}:{number}" for ip, number in pairs]
