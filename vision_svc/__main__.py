"""Starts vision_svc: `python -m vision_svc`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc

from ml.internal import worker_pb2_grpc
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from shared.files.space import CacheSpace
from shared.process import thread_tracebacks
from shared.rpc.admission import Admission
from shared.rpc.channels import MODEL_MANAGEMENT
from shared.rpc.drain import Drain
from shared.rpc.model_worker import MODEL_WORKER_NAME, ModelWorkerServicer
from shared.rpc.server import (
    Health,
    main,
    serve,
)
from vision_svc.process_setup import mediapipe_fault, refuse_reports, tune_allocator
from vision_svc.service import NAME, MediapipeServicer, add_servicer
from vision_svc.settings import VisionSettings

if TYPE_CHECKING:
    from vision_svc.models import Models
    from vision_svc.runtime import VisionRuntime
    from vision_svc.task_runner import TaskRunner

log = logging.getLogger(__name__)


def _build(
    settings: VisionSettings, files: ModelFiles, on_failures: Callable[[], None]
) -> tuple[VisionRuntime, TaskRunner, Models]:
    """Imports the heavy modules, MediaPipe above all, while the port is already open."""
    from vision_svc.models import Models
    from vision_svc.runtime import VisionRuntime
    from vision_svc.task_runner import TaskRunner

    runtime = VisionRuntime(settings, on_failures)
    return runtime, TaskRunner(runtime, settings.max_waiting_calls), Models(runtime, files)


def _end_process() -> None:
    """Ends this process in order, because failed graphs leak threads until it ends.

    Its supervisor starts it again; container engines do not restart a container for its health.
    """
    log.error("too many MediaPipe graphs have failed: this process ends, to be started again")
    os.kill(os.getpid(), signal.SIGTERM)


async def _end_when_hung(runtime: VisionRuntime) -> None:
    """Ends this process in order once a thread hangs: no thread can be ended alone."""
    await runtime.until_hung()
    log.error(
        "a thread hangs: this process ends, to be started again",
        extra={"tracebacks": thread_tracebacks()},
    )
    os.kill(os.getpid(), signal.SIGTERM)


async def run(settings: VisionSettings) -> None:
    """Serves until SIGTERM or SIGINT."""
    admission, drain = Admission(settings.admission_seconds), Drain()
    vision, worker = MediapipeServicer(), ModelWorkerServicer(admission, drain=drain)

    def register(server: grpc.aio.Server, _: Health) -> None:
        add_servicer(vision, server)
        worker_pb2_grpc.add_ModelWorkerServicer_to_server(worker, server)

    @asynccontextmanager
    async def lifespan(_: Health) -> AsyncIterator[None]:
        async with ModelFiles(
            settings.file_provider_addr,
            settings.cache_dir,
            limits=FetchLimits.of(settings),
            serving=MODEL_MANAGEMENT,
            space=CacheSpace.of(settings, settings.cache_dir, store=settings.store_dir),
        ) as files:
            runtime, runner, models = await asyncio.to_thread(_build, settings, files, _end_process)
            vision.runner, worker.host = runner, models
            watch = asyncio.create_task(_end_when_hung(runtime))
            try:
                yield
            finally:
                if watch.done():  # nothing can wait for a thread that hangs
                    os._exit(1)
                watch.cancel()
                await asyncio.to_thread(runtime.close)

    await serve(
        settings,
        [NAME],
        register,
        internal_names=[MODEL_WORKER_NAME],
        lifespan=lifespan,
        admission=admission,
        drain=drain,
    )


if __name__ == "__main__":
    if _fault := mediapipe_fault():
        sys.exit(_fault)
    tune_allocator()
    refuse_reports()
    main("vision_svc", VisionSettings, run)
