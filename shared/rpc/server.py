"""A service's gRPC server, from the bound port to a clean exit."""

from __future__ import annotations

import asyncio
import faulthandler
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
from shared.rpc.call_metrics import CallInterceptor, serve_metrics
from shared.rpc.channels import client_options
from shared.rpc.drain import Drain
from shared.rpc.interceptors import ErrorInterceptor, Interceptors
from shared.rpc.loop_watch import LoopWatch
from shared.rpc.one_message import OneMessageInterceptor
from shared.rpc.reflection import add_reflection
from shared.rpc.stream_limits import StreamLimits, StreamLimitsInterceptor
from shared.rpc.watches import HealthServicer, Watches
from shared.settings import ServerSettings, ServiceSettings, log_settings, read_settings
from shared.telemetry import logs, tracing

log = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=ServiceSettings)

_Status = health_pb2.HealthCheckResponse

# The name of the outermost task of each call in grpc.aio.
_HANDLER_TASK = "rpc_task"
# Longest wait at shutdown for handlers that still run after their calls have ended.
_MAX_HANDLER_SECONDS = 5.0


class Health:
    """State of the standard health service, by service name; "" is the whole process.

    Attributes:
        watches: its open watches, which have places in common with all others of the process.
    """

    def __init__(self, names: Sequence[str], watches: Watches | None = None) -> None:
        self.names = ("", *names)
        self.watches = watches or Watches()
        self.servicer = HealthServicer(self.watches)
        self._stopping = False

    async def set(self, name: str, serving: bool) -> None:
        """Sets the state of one name; during shutdown all stay NOT_SERVING."""
        serving = serving and not self._stopping
        await self.servicer.set(name, _Status.SERVING if serving else _Status.NOT_SERVING)

    async def set_all(self, serving: bool) -> None:
        for name in self.names:
            await self.set(name, serving)

    async def open(self, admission: Admission | None = None, drain: Drain | None = None) -> None:
        """Sets the process to SERVING now, and its services once they are admitted.

        With a drain it goes on until cancelled: the services are NOT_SERVING while it lasts.
        """
        await self.set("", True)
        if admission:
            await admission.wait()
        if drain is None:
            await self.set_all(True)
        log.info("serving")
        while drain:
            drained = drain.drained
            for name in filter(None, self.names):
                await self.set(name, not drained)
            if drain.drained == drained:  # else it has changed meanwhile
                await drain.changed()
            log.info("drained by hand" if drain.drained else "the drain was ended")

    async def stop(self) -> None:
        """Sets everything to NOT_SERVING, finally."""
        self._stopping = True
        await self.set_all(False)


def server_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Options of a grpc.aio server behind Envoy.

    Envoy pings idle connections; grpcio closes these with "Too many pings" unless the two ping
    options allow it.
    """
    return [
        *client_options(settings.max_message_bytes)[:2],
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def create_server(settings: ServerSettings, drain: Drain | None = None) -> grpc.aio.Server:
    """A grpc.aio server with the interceptors and limits of every service, not yet bound."""
    return grpc.aio.server(
        interceptors=[
            Interceptors(
                [
                    OneMessageInterceptor(),
                    CallInterceptor(settings.logged_calls),
                    ErrorInterceptor(),
                    StreamLimitsInterceptor(StreamLimits.of(settings)),
                    CallLimitInterceptor(
                        settings.max_concurrent_calls, settings.max_calls_per_caller, drain
                    ),
                ]
            )
        ],
        options=server_options(settings),
    )


def bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Binds the server to host:port and returns the port.

    Raises:
        SystemExit: the port is not available; with a message for the log.
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
    drain: Drain | None = None,
    watch_seconds: float = 0,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns.

    The port listens before `lifespan` is entered; health is SERVING afterwards. On a signal, health
    becomes NOT_SERVING, the proxy has `drain_seconds` to notice, running calls have `grace_seconds`
    to finish, then the lifespan is left.

    Args:
        settings: ports and limits.
        names: full names of the public services, for health and reflection.
        register: adds the servicers to the server.
        internal_names: services that are reflected but have no health state.
        lifespan: holds what must be open while calls are served, such as pools and processes.
        admission: what the health of the public services, which the proxy checks, also waits for.
            The process as a whole is SERVING meanwhile.
        drain: while it lasts, the public services are NOT_SERVING and take no new calls.
        watch_seconds: life of a stream of the health or reflection service; 0 is unlimited, which
            the watches between our own processes need.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    server = create_server(settings, drain)
    watches = Watches(settings.max_watches, watch_seconds)
    state = Health(names, watches)
    await state.set_all(False)
    health_pb2_grpc.add_HealthServicer_to_server(state.servicer, server)
    register(server, state)
    add_reflection(server, [*names, *internal_names, health.SERVICE_NAME], watches)
    port = bind(server, settings.host, settings.port)
    await server.start()
    log.info("listening", extra={"host": settings.host, "port": port})
    with LoopWatch(settings.max_stall_seconds):
        async with lifespan(state) if lifespan else nullcontext():
            opening = asyncio.create_task(state.open(admission, drain))
            await stop.wait()
            opening.cancel()
            log.info("draining", extra={"seconds": settings.drain_seconds})
            await state.stop()
            await asyncio.sleep(settings.drain_seconds)
            watches.stop()
            await server.stop(settings.grace_seconds)
            await _handlers_ended()
    log.info("stopped")


async def _handlers_ended() -> None:
    """Waits for handlers that still run after their calls have ended on the wire.

    `stop` waits for the calls, not for their tasks: a task that is cancelled with the loop skips
    its cleanup and log line, and grpc.aio prints a stack trace.
    """
    tasks = [task for task in asyncio.all_tasks() if task.get_name() == _HANDLER_TASK]
    if tasks:
        await asyncio.wait(tasks, timeout=_MAX_HANDLER_SECONDS)


def main(
    service: str,
    kind: type[Settings],
    run: Callable[[Settings], Coroutine[Any, Any, None]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Entry point of a service: sets up settings, logs, traces and metrics, then calls `run`.

    Args:
        service: its name.
        kind: its settings class, read from the environment.
        run: serves until the process is told to stop.
        loop_factory: makes the event loop; None is asyncio's own.
    """
    settings = read_settings(kind)
    faulthandler.register(signal.SIGUSR1)  # tracebacks in the log, see docs/operations.md
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
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run(settings))
