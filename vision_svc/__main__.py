"""Starts vision_svc: `python -m vision_svc`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc

from ml import mediapipe_pb2_grpc
from shared.server import Health, main, serve
from vision_svc.service import NAME, MediapipeServicer
from vision_svc.settings import VisionSettings

if TYPE_CHECKING:
    from vision_svc.engine import Engine

log = logging.getLogger(__name__)


def make_engine(settings: VisionSettings, on_failures: Callable[[], None]) -> Engine:
    """Imports what is heavy, MediaPipe above all, and makes the engine."""
    from vision_svc.engine import Engine

    return Engine(settings, on_failures)


async def run(settings: VisionSettings) -> None:
    """Serves until it is told to stop."""
    servicer = MediapipeServicer()

    def register(server: grpc.aio.Server, _: Health) -> None:
        mediapipe_pb2_grpc.add_MediapipeServiceServicer_to_server(servicer, server)

    @asynccontextmanager
    async def lifespan(health: Health) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def ask_for_restart() -> None:
            """Failed graphs leak threads: after some, only a new process helps."""
            log.error("too many graphs have failed: NOT_SERVING until the process is restarted")
            asyncio.run_coroutine_threadsafe(health.set_all(False), loop)

        engine = await asyncio.to_thread(make_engine, settings, ask_for_restart)
        servicer.engine = engine
        try:
            yield
        finally:
            await asyncio.to_thread(engine.close)

    await serve(settings, [NAME], register, lifespan=lifespan)


if __name__ == "__main__":
    _settings = VisionSettings()
    main("vision_svc", _settings, lambda: run(_settings))
