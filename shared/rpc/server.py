"""The life of a service's gRPC server, from the bound port to exit code 0."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from shared.rpc.admission import Admission
from shared.rpc.call_limit import CallLimitInterceptor
from shared.rpc.call_metrics import (
    CallInterceptor,
    serve_metrics,
)
from shared.rpc.channels import client_options
from shared.rpc.interceptors import ErrorInterceptor
from shared.rpc.reflection import add_reflection
from shared.settings import ServerSettings, log_settings, read_settings
from shared.telemetry import (
    logs,
    tracing,
)

log = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=ServerSettings)

_Status = health_pb2.HealthCheckResponse

# The name that grpc.aio gives the outermost task of each call.
_HANDLER_TASK = "rpc_task"
# How long a handler may go on after its call has ended, at most, when the process stops.
_HANDLER_SECONDS = 5.0


class Health:
    """What the standard health service answers, by service name; "" is the whole process."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = ("", *names)
        self.servicer = health.aio.HealthServicer()
        self._stopping = False

    async def set(self, name: str, serving: bool) -> None:
        """Sets one name; once the process is stopping, all stay NOT_SERVING."""
        serving = serving and not self._stopping
        await self.servicer.set(name, _Status.SERVING if serving else _Status.NOT_SERVING)

    async def set_all(self, serving: bool) -> None:
        for name in self.names:
            await self.set(name, serving)

    async def open(self, admission: Admission | None = None) -> None:
        """SERVING: the process now, and its services once calls are let in."""
        await self.set("", True)
        if admission:
            await admission.wait()
        await self.set_all(True)
        log.info("serving")

    async def stop(self) -> None:
        """NOT_SERVING for good."""
        self._stopping = True
        await self.set_all(False)


def server_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Options of a grpc.aio server behind Envoy.

    Envoy pings quiet connections; grpcio takes that for abuse ("Too many pings") unless the two
    ping options allow it.
    """
    return [
        *client_options(settings.max_message_bytes)[:2],
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def create_server(settings: ServerSettings) -> grpc.aio.Server:
    """A grpc.aio server with the interceptors and limits of every service, without its port."""
    return grpc.aio.server(
        interceptors=[
            CallInterceptor(),
            ErrorInterceptor(),
            CallLimitInterceptor(settings.max_concurrent_calls),
        ],
        options=server_options(settings),
    )


def bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Listens on host:port and returns the port.

    Raises:
        SystemExit: the port is taken, with a sentence that says so.
    """
    try:
        return server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        sys.exit(f"cannot listen on {host}:{port}: the port is in use or not permitted")


async def serve(
    settings: ServerSettings,
    names: Sequence[str],
    register: Callable[[grpc.aio.Server, Health], None],
    *,
    internal_names: Sequence[str] = (),
    lifespan: Callable[[Health], AbstractAsyncContextManager[Any]] | None = None,
    admission: Admission | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns.

    The port listens before `lifespan` is entered; health says SERVING once it is. On a signal:
    NOT_SERVING, `drain_seconds` in which the proxy notices, `grace_seconds` for running calls, then
    the lifespan is left.

    Args:
        settings: ports and limits.
        names: full names of the public services, for health and reflection.
        register: adds the servicers to the server.
        internal_names: services that are served and reflected, and have no health name.
        lifespan: what must be open while calls are served, such as pools and child processes.
        admission: what the health of the public services waits for besides; the proxy asks for
            that one. The process as a whole serves meanwhile.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    server = create_server(settings)
    state = Health(names)
    await state.set_all(False)
    health_pb2_grpc.add_HealthServicer_to_server(state.servicer, server)
    register(server, state)
    add_reflection(server, [*names, *internal_names, health.SERVICE_NAME])
    port = bind(server, settings.host, settings.port)
    await server.start()
    log.info("listening", extra={"host": settings.host, "port": port})
    async with lifespan(state) if lifespan else nullcontext():
        opening = asyncio.create_task(state.open(admission))
        await stop.wait()
        opening.cancel()
        log.info("draining", extra={"seconds": settings.drain_seconds})
        await state.stop()
        await asyncio.sleep(settings.drain_seconds)
        await server.stop(settings.grace_seconds)
        await _handlers_ended()
    log.info("stopped")


async def _handlers_ended() -> None:
    """Waits for what handlers still have to do once their calls have ended on the wire.

    `stop` knows the calls and not the tasks behind them: a task that the loop's end cancels loses
    its last lines (a release, a line of the log) and prints a trace of grpc.aio's own.
    """
    tasks = [task for task in asyncio.all_tasks() if task.get_name() == _HANDLER_TASK]
    if tasks:
        await asyncio.wait(tasks, timeout=_HANDLER_SECONDS)


def main(
    service: str, kind: type[Settings], run: Callable[[Settings], Coroutine[Any, Any, None]]
) -> None:
    """Entry point of a service: settings, logs, traces, metrics page; then `run` to its end.

    Args:
        service: its name.
        kind: its settings, which are read from the environment.
        run: serves until the process is told to stop.
    """
    settings = read_settings(kind)
    logs.configure(service, settings.log_level, settings.log_style)
    tracing.configure(service)
    log_settings(settings)
    if settings.metrics_port:
        try:
            serve_metrics(settings.metrics_host, settings.metrics_port)
        except OSError as error:
            sys.exit(
                f"cannot serve metrics on {settings.metrics_host}:{settings.metrics_port}: "
                f"{error.strerror}"
            )
    asyncio.run(run(settings))
