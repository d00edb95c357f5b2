"""Watches have a limit and a life, and end with the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shared.errors import ShuttingDownError
from shared.rpc.reflection import add_reflection
from shared.rpc.server import create_server
from shared.rpc.watches import HealthServicer, Watches
from shared.settings import ServerSettings
from tests.support.waiting import until

UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@asynccontextmanager
async def _serving(watches: Watches) -> AsyncIterator[tuple[grpc.aio.Server, grpc.aio.Channel]]:
    server = create_server(ServerSettings())
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(watches), server)
    add_reflection(server, [], watches)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield server, channel
    await server.stop(0)


def _watch(channel: grpc.aio.Channel) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service="x"))


async def _refused(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert "grpc-status-details-bin" in dict(caught.value.trailing_metadata() or ())
    return caught.value.code().name, caught.value.details() or ""


async def test_watches_over_the_limit_are_refused_until_one_ends() -> None:
    async with _serving(Watches(2)) as (_, channel):
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asking = reflection.ServerReflectionInfo()
        await asking.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert await asking.read()
        watch = _watch(channel)
        assert (await watch.read()).status == UNKNOWN
        refusal = ("RESOURCE_EXHAUSTED", "2 watches are open, and the limit is 2")
        assert await _refused(_watch(channel)) == refusal
        await asking.done_writing()
        assert await asking.read() is grpc.aio.EOF
        again = _watch(channel)
        assert (await again.read()).status == UNKNOWN
        for call in (watch, again):
            call.cancel()


async def test_a_watch_ends_with_its_life() -> None:
    async with _serving(Watches(1, 0.3)) as (_, channel):
        for _ in range(2):
            code, details = await _refused(_watch(channel))
            assert code == "UNAVAILABLE"
            assert details == "the watch has ended after 0.3 s, its longest life: watch again"


async def test_an_open_watch_does_not_hold_the_server() -> None:
    watches = Watches()
    async with _serving(watches) as (server, channel):
        watch = _watch(channel)
        assert (await watch.read()).status == UNKNOWN
        watches.stop()
        await asyncio.wait_for(server.stop(3600), 60)
        assert await _refused(watch) == ("UNAVAILABLE", "the service is stopping")
        await until(lambda: not watches.count)


async def test_watches_that_end_while_they_write_are_told() -> None:
    for _ in range(8):  # whether the first answer is still being written is chance
        watches = Watches(64)
        async with _serving(watches) as (server, channel):
            calls = [_watch(channel) for _ in range(32)]
            while watches.count < len(calls):
                await asyncio.sleep(0)
            watches.stop()
            await asyncio.wait_for(server.stop(3600), 60)
            for call in calls:
                assert await _refused(call) == ("UNAVAILABLE", "the service is stopping")


async def test_the_server_stops_while_a_watch_ends() -> None:
    watches = Watches(2, 0.01)
    stopped = False

    async def hold() -> None:
        nonlocal stopped
        async with watches.watch():
            try:
                await asyncio.sleep(10)
            finally:
                watches.stop()
                stopped = True

    with pytest.raises(ShuttingDownError):
        await hold()
    assert stopped
    assert watches.count == 0
