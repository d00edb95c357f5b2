"""The services that hold models, one client for each replica, and what they say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self, cast

import grpc

from ml.internal import worker_pb2, worker_pb2_grpc
from shared.errors import InternalError, ServiceError, WorkerUnavailableError
from shared.pipelines import ServiceName
from shared.rpc.channels import connect
from shared.rpc.remote_errors import from_details
from shared.telemetry.tracing import outgoing_metadata

log = logging.getLogger(__name__)

# A worker that is down costs a listing this long at most.
LIST_SECONDS = 2.0
# Longer than a channel waits between its attempts to connect (shared.rpc.channels): a replica
# that came back a moment ago is found.
CONNECT_SECONDS = 2.5

# How a process that dies in a call shows, and one that does not answer in time.
_DOWN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


@dataclass(frozen=True)
class HeldModel:
    """A model as a worker has it. Memory in bytes, `loaded_at` in Unix seconds.

    `engine` runs it; `note` is a sentence for whoever loads it, often empty.
    """

    model_id: str
    pipeline_type: str
    ready: bool
    ram_bytes: int = 0
    vram_bytes: int = 0
    loaded_at: int = 0
    engine: str = ""
    note: str = ""


class Worker:
    """One replica of a service that holds models.

    Attributes:
        admitted: whether it takes calls, as of the last listing.
    """

    def __init__(self, service: ServiceName, address: str) -> None:
        self.service = service
        self.address = address
        self.admitted = True
        self.channel = connect(address)
        self._stub = worker_pb2_grpc.ModelWorkerStub(self.channel)

    async def load(
        self, model_id: str, pipeline_type: str, options: Mapping[str, str]
    ) -> HeldModel:
        """Loads a model and returns what was measured; cancelling the call cancels the load.

        Raises:
            WorkerUnavailableError: the worker is down or went away.
            What the worker raised.
        """
        request = worker_pb2.LoadRequest(
            model_id=model_id, pipeline_type=pipeline_type, options=options
        )
        model = None
        with self._errors():
            async for progress in self._stub.Load(request, metadata=outgoing_metadata()):
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
        if model is None or model.state != worker_pb2.MODEL_STATE_READY:
            raise InternalError(f"{self.service}_svc ended a load without saying READY")
        return _held(model)

    async def unload(self, model_id: str) -> None:
        """Frees a model, after its running calls.

        Raises:
            As `load`.
        """
        with self._errors():
            await self._stub.Unload(
                worker_pb2.UnloadRequest(model_id=model_id), metadata=outgoing_metadata()
            )

    async def list(self, wait_seconds: float = 0) -> list[HeldModel]:
        """What it holds.

        Args:
            wait_seconds: how long to wait for a connection; 0 fails at once where there is none.

        Raises:
            WorkerUnavailableError: it is down, or did not answer in time.
        """
        with self._errors():
            try:
                answer = await self._stub.List(
                    worker_pb2.ListRequest(),
                    timeout=wait_seconds or LIST_SECONDS,
                    wait_for_ready=wait_seconds > 0,
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return []  # a service that holds its models by itself
                raise
        self.admitted = answer.admitted
        return [_held(model) for model in answer.models]

    async def admit(self) -> None:
        """Lets calls in.

        Raises:
            WorkerUnavailableError: it is down, or did not answer in time.
        """
        with self._errors():
            await self._stub.Admit(worker_pb2.AdmitRequest(), timeout=LIST_SECONDS)
        self.admitted = True
        log.info("replica admitted", extra={"worker": self.service, "address": self.address})

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns what a call raises into errors of this service."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error
        except grpc.aio.UsageError as error:  # the channel is closed: the replica is given up
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
        log.error("unexpected status of a worker", exc_info=error)
        return InternalError(f"{self.service}_svc answered {error.code().name}")

    def _down(self) -> WorkerUnavailableError:
        return WorkerUnavailableError(f"{self.service}_svc, which runs the model, is not reachable")


def _held(model: worker_pb2.ModelInfo) -> HeldModel:
    return HeldModel(
        model_id=model.model_id,
        pipeline_type=model.pipeline_type,
        ready=model.state == worker_pb2.MODEL_STATE_READY,
        ram_bytes=model.ram_bytes,
        vram_bytes=model.vram_bytes,
        loaded_at=model.loaded_at,
        engine=model.engine,
        note=model.note,
    )


class Workers:
    """All replicas of all services; names are looked up anew on each `refresh`.

    An async context manager that closes the connections.

    Args:
        addresses: for each service, "host:port" with commas between.
    """

    def __init__(self, addresses: Mapping[ServiceName, str]) -> None:
        self._targets = [
            (service, target.strip())
            for service, text in addresses.items()
            for target in text.split(",")
            if target.strip()
        ]
        # By service, configured target and address.
        self._workers: dict[tuple[ServiceName, str, str], Worker] = {}

    async def __aenter__(self) -> Self:
        await self.refresh()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close(self._workers.values())

    def of(self, service: ServiceName) -> list[Worker]:
        """The replicas of a service that are known, up or not."""
        return [worker for worker in self._workers.values() if worker.service == service]

    def all(self) -> list[Worker]:
        """All replicas."""
        return list(self._workers.values())

    async def refresh(self) -> None:
        """Looks the names up again; replicas that are gone are forgotten."""
        found = await asyncio.gather(*(_addresses(target) for _, target in self._targets))
        current = set()
        for (service, target), addresses in zip(self._targets, found, strict=True):
            known = [key[2] for key in self._workers if key[:2] == (service, target)]
            # While a name cannot be looked up, what it meant before may still be alive.
            current |= {(service, target, each) for each in addresses or known or [target]}
        gone = [self._workers.pop(key) for key in set(self._workers) - current]
        for service, target, address in sorted(current - set(self._workers)):
            self._workers[service, target, address] = Worker(service, address)
        await self._close(gone)

    async def _close(self, workers: Iterable[Worker]) -> None:
        await asyncio.gather(*(worker.channel.close() for worker in workers))


async def _addresses(target: str) -> list[str]:
    """The addresses behind "host:port"; none when the name cannot be looked up now."""
    host, _, port = target.rpartition(":")
    if not host or target.startswith("unix:"):
        return [target]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        log.warning("a name cannot be looked up", extra={"target": target, "error": str(error)})
        return []
    # One family: "localhost" has two addresses and is one process.
    family = min(entry[0] for entry in found)
    pairs = {cast("tuple[str, int]", entry[4][:2]) for entry in found if entry[0] == family}
    return [f"[{ip}]:{number}" if ":" in ip else f"{ip}:{number}" for ip, number in pairs]
