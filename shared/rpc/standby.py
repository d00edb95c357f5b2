"""A standby: a process that listens and says that it is NOT_SERVING, until it takes over."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2_grpc

from shared.errors import UnavailableError
from shared.rpc.interceptors import Context
from shared.rpc.server import Health, bind, create_server
from shared.rpc.watches import Watches
from shared.settings import ServerSettings


async def serve_as_standby(
    settings: ServerSettings, service: ServiceDescriptor, turn: Coroutine[Any, Any, None]
) -> bool:
    """Serves as a standby until `turn` returns.

    The process as a whole is SERVING, and its service NOT_SERVING, so that the proxy sends no
    calls; those that come all the same are UNAVAILABLE.

    Args:
        settings: ports and limits.
        service: what the process will serve.
        turn: returns when it takes over.

    Returns:
        False if the process was told to stop meanwhile.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for signum in signals:
        loop.add_signal_handler(signum, stop.set)
    server = create_server(settings)
    watches = Watches(settings.max_watches)
    name = service.full_name
    health = Health([name], watches)
    await health.set("", True)
    await health.set(name, False)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    server.add_generic_rpc_handlers((_refusals(service),))
    bind(server, settings.host, settings.port)
    await server.start()
    waits = [asyncio.create_task(each) for each in (turn, _set(stop))]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        watches.stop()
        await server.stop(None)
        for signum in signals:
            loop.remove_signal_handler(signum)
    if stop.is_set():
        return False
    waits[0].result()  # raises what nobody has foreseen
    return True


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def _refusals(service: ServiceDescriptor) -> grpc.GenericRpcHandler:
    """Handlers of all methods of the service, which refuse."""

    def refuse() -> UnavailableError:
        return UnavailableError("this process is a standby: another one answers")

    async def unary(request: bytes, context: Context) -> bytes:
        raise refuse()

    async def stream(request: bytes, context: Context) -> AsyncIterator[bytes]:
        raise refuse()
        yield b""

    handlers: dict[str, Any] = {
        method.name: grpc.unary_stream_rpc_method_handler(stream)
        if method.server_streaming
        else grpc.unary_unary_rpc_method_handler(unary)
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)
