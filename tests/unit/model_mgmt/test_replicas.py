"""Replicas: names, what they hold, and their health as seen from here."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ml.internal import worker_pb2 as pb
from ml.internal import worker_pb2_grpc as pb_grpc
from model_mgmt_svc.health import HealthWatch
from model_mgmt_svc.lease import Lease
from model_mgmt_svc.lease_files import LeaseFiles
from model_mgmt_svc.replicas import Replicas
from shared.errors import (
    InternalError,
    OutOfMemoryError,
    ShuttingDownError,
    WorkerUnavailableError,
)
from shared.rpc.admission import Admission
from shared.rpc.epochs import EPOCH_KEY
from shared.rpc.interceptors import ErrorInterceptor
from shared.rpc.model_worker import ModelWorkerServicer
from shared.rpc.server import Health
from tests.support.model_workers import ModelWorker
from tests.support.processes import free_port
from tests.support.waiting import until

NAME = "ml.TransformersService"


def looked_up(answers: dict[str, list[str]]) -> Any:
    """A `getaddrinfo` that knows these names alone."""

    async def getaddrinfo(host: str, port: str, **_: Any) -> list[Any]:
        if host not in answers:
            raise socket.gaierror("unknown")
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, 1, 6, "", (ip, int(port)))
            for ip in answers[host]
        ]

    return getaddrinfo


async def test_a_name_with_several_addresses_is_several_replicas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"text": ["10.0.0.2", "10.0.0.1"], "both": ["::1", "127.0.0.1"], "six": ["fd00::1"]}
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", looked_up(names))
    async with Replicas({"text": "text:1, both:2,six:3", "vision": ""}) as replicas:
        addresses = {replica.address for replica in replicas.of("text")}
        assert addresses == {"10.0.0.1:1", "10.0.0.2:1", "127.0.0.1:2", "[fd00::1]:3"}
        assert replicas.of("vision") == []


async def test_replicas_come_and_go_and_stay_while_names_cannot_be_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"text": ["10.0.0.1", "10.0.0.2"]}
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", looked_up(names))
    async with Replicas({"text": "text:1"}) as replicas:
        before = {replica.address: replica for replica in replicas.all()}
        names["text"] = ["10.0.0.2", "10.0.0.3"]
        await replicas.refresh()
        after = {replica.address: replica for replica in replicas.all()}
        assert set(after) == {"10.0.0.2:1", "10.0.0.3:1"}
        assert after["10.0.0.2:1"] is before["10.0.0.2:1"]
        names.clear()
        await replicas.refresh()
        assert {replica.address: replica for replica in replicas.all()} == after


async def test_statuses_of_a_worker_are_errors_here() -> None:
    async with (
        ModelWorker().running() as served,
        Replicas({"text": served.address, "vision": f"127.0.0.1:{free_port()}"}) as replicas,
    ):
        (replica,), (down,) = replicas.of("text"), replicas.of("vision")
        served.failures = [OutOfMemoryError("9 GiB"), ValueError("/a/path")]  # type: ignore[list-item]
        with pytest.raises(OutOfMemoryError, match="9 GiB"):
            await replica.load("a", "text-generation", {})
        with pytest.raises(InternalError) as caught:
            await replica.load("a", "text-generation", {})
        assert "/a/path" not in caught.value.message
        for call in (down.list(), down.load("a", "x", {}), down.unload("a"), down.list(0.2)):
            with pytest.raises(WorkerUnavailableError, match="vision_svc"):
                await call


async def test_a_worker_that_dies_in_a_load_is_unavailable() -> None:
    worker = ModelWorker()
    worker.go_on.clear()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(worker.running())
        replicas = await stack.enter_async_context(Replicas({"text": worker.address}))
        load = asyncio.create_task(replicas.of("text")[0].load("a", "text-generation", {}))
        await until(lambda: bool(worker.loads))
        await worker.stop()
        with pytest.raises(WorkerUnavailableError):
            await load


async def test_a_replica_that_is_given_up_during_a_call_is_unavailable() -> None:
    """Its channel is closed then, and grpc says that with CancelledError."""
    async with ModelWorker().running() as served, Replicas({"text": served.address}) as replicas:
        (replica,) = replicas.of("text")
        served.go_on.clear()
        served.answers_lists.clear()
        calls = [
            asyncio.create_task(replica.load("a", "text-generation", {})),
            asyncio.create_task(replica.list(wait_seconds=60)),
        ]
        await until(lambda: bool(served.loads and served.lists))
        await replica.channel.close()
        for call in (*calls, replica.list(), replica.unload("a"), replica.admit()):
            with pytest.raises(WorkerUnavailableError):
                await call


async def test_a_call_that_its_caller_cancels_is_cancelled() -> None:
    async with ModelWorker().running() as served, Replicas({"text": served.address}) as replicas:
        served.go_on.clear()
        for count in range(1, 41):  # some are cancelled when the request has just been sent
            call = asyncio.create_task(replicas.of("text")[0].load("a", "text-generation", {}))
            await until(lambda count=count: len(served.loads) == count)
            call.cancel()
            await asyncio.wait((call,))
            assert call.cancelled()
            await until(lambda count=count: served.cancelled == count)


async def test_a_service_that_holds_models_by_itself_lists_none() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Replicas({"vision": f"127.0.0.1:{port}"}) as replicas:
        assert await replicas.of("vision")[0].list() == []
    await server.stop(None)


@contextlib.asynccontextmanager
async def watching(replicas: Replicas) -> AsyncIterator[tuple[HealthWatch, Health]]:
    health = Health([])
    watch = HealthWatch(replicas, {"text": NAME}, health)
    task = asyncio.create_task(watch.run())
    try:
        yield watch, health
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def status(health: Health) -> int:
    request = health_pb2.HealthCheckRequest(service=NAME)
    try:
        return (await health.servicer.Check(request, _NoContext())).status
    except LookupError:
        return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class _NoContext:
    async def abort(self, *_: Any) -> None:
        raise LookupError


async def test_a_service_serves_while_one_of_its_replicas_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model_mgmt_svc.health.RETRY_SECONDS", 0.02)
    serving, not_serving = 1, 2

    async def becomes(expected: int) -> None:
        async def reached() -> bool:
            return await status(health) == expected

        await until(reached)

    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(ModelWorker().running())
        second = await stack.enter_async_context(ModelWorker().running())
        replicas = await stack.enter_async_context(
            Replicas({"text": f"{first.address},{second.address}"})
        )
        watch, health = await stack.enter_async_context(watching(replicas))
        of_first, of_second = replicas.of("text")
        if of_first.address != first.address:
            of_first, of_second = of_second, of_first
        await becomes(not_serving)
        await first.say(NAME, True)
        await becomes(serving)
        await second.say(NAME, True)
        await until(lambda: watch._serving.get(of_second, False))
        await first.say(NAME, False)
        await until(lambda: not watch._serving[of_first])
        assert await status(health) == serving
        await second.stop()
        await becomes(not_serving)
        await first.say(NAME, True)
        await becomes(serving)


async def test_a_watch_does_not_hold_up_a_server_that_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model_mgmt_svc.health.RETRY_SECONDS", 0.02)
    server = grpc.aio.server()
    state = Health([NAME])
    await state.set_all(True)
    health_pb2_grpc.add_HealthServicer_to_server(state.servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with (
        Replicas({"text": f"127.0.0.1:{port}"}) as replicas,
        watching(replicas) as (_, health),
    ):

        async def seen() -> bool:
            return await status(health) == 1

        await until(seen)
        await state.stop()
        async with asyncio.timeout(100):
            await server.stop(200)


async def test_a_replica_that_knows_a_later_holder_of_the_lease(tmp_path: Path) -> None:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    pb_grpc.add_ModelWorkerServicer_to_server(ModelWorkerServicer(Admission(60)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    lost: list[bool] = []
    old, new = LeaseFiles(tmp_path), Lease(tmp_path, on_lost=lambda: lost.append(True))
    assert await new.take()
    async with Replicas({"text": f"127.0.0.1:{port}"}, new) as replicas:
        (replica,) = replicas.all()
        await replica.admit()
        stub = pb_grpc.ModelWorkerStub(replica.channel)
        await stub.Admit(pb.AdmitRequest(), metadata=((EPOCH_KEY, "9"),))
        with pytest.raises(ShuttingDownError):  # the folder was emptied: it goes on with epoch 10
            await replica.admit()
        await replica.admit()
        assert (new.epoch, lost) == (10, [])
        assert old.claim(11)
        await stub.Admit(pb.AdmitRequest(), metadata=((EPOCH_KEY, "11"),))
        for _ in range(2):
            with pytest.raises(ShuttingDownError, match="another model_mgmt_svc has taken over"):
                await replica.admit()
        assert lost == [True]
    await server.stop(None)
