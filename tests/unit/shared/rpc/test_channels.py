"""Channels between the services."""

from __future__ import annotations

import contextlib
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from shared.rpc.channels import MODEL_MANAGEMENT, connect
from shared.rpc.server import Health
from tests.support.waiting import until

SERVING = health_pb2.HealthCheckResponse.SERVING


async def test_no_proxy_stands_between_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nobody listens there
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    await servicer.set("", SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert answer.status == SERVING
    finally:
        await server.stop(None)


async def test_only_an_address_that_is_serving_takes_calls() -> None:
    """And one without a health service, such as a file provider of the application."""
    async with contextlib.AsyncExitStack() as stack:
        ports, states = [], []
        for serving in (False, True, None):
            server = grpc.aio.server()

            async def answer(request: bytes, context: Any, port: int = len(ports)) -> bytes:
                return str(port).encode()

            handlers = {"Ask": grpc.unary_unary_rpc_method_handler(answer)}
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(MODEL_MANAGEMENT, handlers),)
            )
            state = Health([MODEL_MANAGEMENT])
            if serving is not None:
                await state.set(MODEL_MANAGEMENT, serving)
                health_pb2_grpc.add_HealthServicer_to_server(state.servicer, server)
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            states.append(state)
            await server.start()
            stack.push_async_callback(server.stop, None)

        async def asked(channel: grpc.aio.Channel) -> set[bytes]:
            ask = channel.unary_unary(f"/{MODEL_MANAGEMENT}/Ask")
            return {await ask(b"", wait_for_ready=True, timeout=60) for _ in range(4)}

        two = f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"
        async with connect(two, serving=MODEL_MANAGEMENT) as channel:
            assert await asked(channel) == {b"1"}
            await states[0].set(MODEL_MANAGEMENT, True)
            await states[1].set(MODEL_MANAGEMENT, False)

            async def the_other() -> bool:
                return await asked(channel) == {b"0"}

            await until(the_other)
        async with connect(f"127.0.0.1:{ports[2]}", serving=MODEL_MANAGEMENT) as channel:
            assert await asked(channel) == {b"2"}
