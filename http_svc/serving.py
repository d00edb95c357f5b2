"""The HTTP server, from the bound port to a clean exit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from http_svc.app import Health, application
from http_svc.services import Services
from http_svc.settings import HttpSettings
from shared.rpc.loop_watch import LoopWatch

log = logging.getLogger(__name__)

# Longer than Envoy keeps a connection that is idle, so that a request never meets one that closes.
KEEP_ALIVE_SECONDS = 75
_BACKLOG = 2048


class _Server(uvicorn.Server):
    """A server that leaves the signals to `run`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        SystemExit: the port is not available; with a message for the log.
    """
    try:
        return socket.create_server((host, port), backlog=_BACKLOG)
    except OSError as error:
        sys.exit(f"cannot listen on {host}:{port}: {error.strerror}")


async def run(settings: HttpSettings) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    listening = bind(settings.host, settings.port)
    log.info("listening", extra={"host": settings.host, "port": settings.port})
    with LoopWatch(settings.max_stall_seconds):
        await serve(settings, listening, stop)
    log.info("stopped")


async def serve(settings: HttpSettings, listening: socket.socket, stop: asyncio.Event) -> None:
    """Serves until it is told to stop.

    Then the health check fails, the proxy has `drain_seconds` to notice, and running requests have
    `grace_seconds` to finish.

    Args:
        settings: of the service.
        listening: the socket, which is closed at the end.
        stop: tells it.
    """
    health = Health()
    async with Services(settings) as services:
        server = _Server(
            uvicorn.Config(
                application(services, health),
                loop="none",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
            )
        )
        serving = asyncio.create_task(server.serve([listening]))
        ending = asyncio.create_task(stop.wait())
        await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        log.info("draining", extra={"seconds": settings.drain_seconds})
        health.serving = False
        await asyncio.sleep(settings.drain_seconds)
        server.should_exit = True
        await serving
