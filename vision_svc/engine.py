"""What runs pictures and streams: worker threads, instances and limits. The service's domain side.

Importing this brings MediaPipe, which takes a second: import it off the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from shared.errors import QueueFullError
from shared.process import memory_limit_bytes
from vision_svc import metrics
from vision_svc.assets import Assets
from vision_svc.detector import Mode, Response, VisionTask
from vision_svc.frames.decoder import decode_picture
from vision_svc.frames.types import (
    EncodedFrame,
    Limits,
)
from vision_svc.instances import Instances
from vision_svc.options import frame_policy_of_call, options_of_call, parse_options
from vision_svc.streams.serial_executor import name_thread
from vision_svc.streams.session import (
    Incoming,
    Metadata,
    Session,
)
from vision_svc.tasks import TASKS

if TYPE_CHECKING:
    from vision_svc.settings import VisionSettings


# Of the container's memory, for instances; the rest is for frames on their way.
_MEMORY_SHARE = 0.6


class Engine:
    """Runs tasks on pictures and streams; the event loop never decodes or infers.

    Streams decode and run in one thread a core each, single pictures in as many of their own, so
    that they do not wait behind streams; the cores are shared by the operating system.

    Args:
        settings: limits and places.
        on_failures: called once, in a worker thread, when too many graphs have failed.
    """

    def __init__(self, settings: VisionSettings, on_failures: Callable[[], None]) -> None:
        # Frames run side by side; threads inside one picture's conversion only get in the way.
        cv2.setNumThreads(1)
        for name in TASKS:
            metrics.of_task(name)
        self.limits = Limits(settings.max_pixels, settings.max_side)
        self.assets = Assets(settings.assets_dir)
        self.instances = Instances(
            self.assets,
            min(settings.instance_memory_mb, int(_MEMORY_SHARE * memory_limit_bytes()) >> 20),
            settings.max_idle_instances,
            self._count_failure,
        )
        self._settings = settings
        self._on_failures = on_failures
        self._failures = itertools.count(1)  # threads may draw from it
        self._streams = 0
        self._calls = 0
        self._threads = settings.workers or len(os.sched_getaffinity(0))
        self.decoders = _pool(self._threads, "decode")
        self.workers = _pool(self._threads, "frame")
        self._callers = _pool(self._threads, "picture")

    async def detect(self, task_name: str, frame: EncodedFrame, call: Metadata) -> Response:
        """What a task finds in one picture.

        Raises:
            ServiceError: the picture or an option was refused, or a limit was reached.
        """
        task = TASKS[task_name]
        figures = metrics.of_task(task.name)
        options = parse_options(task.options, options_of_call(call))
        limit = self._threads + self._settings.max_waiting_calls
        if self._calls >= limit:
            raise QueueFullError(f"{limit} pictures run or wait, which is the limit")

        def run() -> Response:
            picture = decode_picture(frame, self.limits)
            figures.decode_seconds.observe(picture.decode_seconds)
            with self.instances.borrow(task, options, Mode.IMAGE) as instance:
                start = time.perf_counter()
                response = instance.detect(picture.image)
                inference = time.perf_counter() - start
            busy = picture.decode_seconds + inference
            response.timing.decode_ms = picture.decode_seconds * 1000
            response.timing.inference_ms = inference * 1000
            waited = time.perf_counter() - frame.received_at - busy
            response.timing.waiting_ms = max(0.0, waited) * 1000
            return response

        figures.received.inc()
        self._calls += 1
        try:
            response = await asyncio.wrap_future(self._callers.submit(run))
        finally:
            self._calls -= 1
        figures.answered.inc()
        return response

    def stream(self, task_name: str, incoming: Incoming, call: Metadata) -> AsyncIterator[Response]:
        """What a task finds in each frame of a stream; see `Session`."""
        session = Session(self, TASKS[task_name], call, frame_policy_of_call(call))
        return session.answers(incoming)

    def open_stream(self) -> None:
        """Takes one of the places for streams.

        Raises:
            QueueFullError: all are taken.
        """
        if self._streams >= self._settings.max_streams:
            raise QueueFullError(
                f"{self._streams} streams are open, which is the limit",
                metadata={"max_streams": str(self._settings.max_streams)},
            )
        self._streams += 1

    def close_stream(self) -> None:
        self._streams -= 1

    async def try_model(self, task: VisionTask, path: Path) -> None:
        """Opens a model file once, with default options, and closes it.

        Raises:
            InvalidModelError: it is no model of this task.
            OutOfMemoryError: there is no room to try it.
        """
        await asyncio.wrap_future(self._callers.submit(self.instances.try_model, task, path))

    def use_model(self, task: VisionTask, path: Path | None) -> None:
        """Streams and pictures that come from now on run on this file; None: on the task's own."""
        self.assets.replace(task, path)
        self.instances.drop_idle(task)

    def close(self) -> None:
        """Ends the threads and frees the models; waits for frames that run."""
        for pool in (self.decoders, self.workers, self._callers):
            pool.shutdown(wait=True, cancel_futures=True)
        self.instances.shut_down()

    def _count_failure(self) -> None:
        if next(self._failures) == self._settings.max_failed_graphs:
            self._on_failures()


def _pool(threads: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, name, initializer=name_thread, initargs=(name,))
