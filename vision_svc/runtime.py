"""What all calls of vision_svc share: threads, limits, detectors in memory, places for streams."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from shared.errors import WorkerUnavailableError
from shared.places import Places
from shared.process import memory_limit_bytes, usable_cores
from vision_svc import metrics
from vision_svc.assets import Assets
from vision_svc.frames.types import Limits
from vision_svc.instances import Instances
from vision_svc.process_setup import return_free_memory
from vision_svc.watched_pool import WatchedPool

if TYPE_CHECKING:
    from shared.model_host import HostedModel
    from vision_svc.detector import StreamTask, VisionTask
    from vision_svc.settings import VisionSettings

# Share of the container's memory for instances; the rest is for the frames in flight.
_MEMORY_SHARE = 0.6


# Free memory is returned at most once in this time: the allocator serves nobody meanwhile.
_RETURN_SECONDS = 2.0

# How often the threads are looked at within `hang_seconds`.
_LOOKS = 6


class VisionRuntime:
    """The resources that streams and single pictures share.

    Streams decode and run their frames in one thread a core each. Single pictures have as many
    threads of their own, so that they do not wait behind streams; the operating system shares the
    cores among them.

    Args:
        settings: the service's settings.
        on_failures: called once, in one of the threads, when too many graphs have failed.

    Attributes:
        limits: how large a picture may be.
        instances: the detectors in memory.
        threads: the size of each pool.
        decode_pool: decodes the frames of streams.
        frame_pool: runs tasks on the frames of streams.
        picture_pool: decodes single pictures and runs tasks on them; also tries models.
        streams: the places for streams.
    """

    def __init__(self, settings: VisionSettings, on_failures: Callable[[], None]) -> None:
        # Frames run side by side; threads inside the conversion of one picture only get in the way.
        cv2.setNumThreads(1)
        self.limits = Limits(settings.max_pixels, settings.max_side)
        self._assets = Assets(settings.assets_dir)
        self.instances = Instances(
            self._assets,
            min(settings.instance_memory_mb, int(_MEMORY_SHARE * memory_limit_bytes()) >> 20),
            settings.max_idle_instances,
            self._count_failure,
        )
        self._models: dict[str, HostedModel | None] = {}
        self._hang_seconds = settings.hang_seconds
        self._max_failures = settings.max_failed_graphs
        self._on_failures = on_failures
        self._failures = itertools.count(1)  # safe to share between threads
        self.streams = Places(
            settings.max_streams,
            f"{settings.max_streams} streams are open, which is the limit",
            name="max_streams",
        )
        self._returning: asyncio.TimerHandle | None = None
        self.threads = settings.workers or usable_cores()
        self.decode_pool = _pool(self.threads, "decode")
        self.frame_pool = _pool(self.threads, "frame")
        self.picture_pool = _pool(self.threads, "picture")

    async def try_model(self, task: VisionTask, path: Path) -> None:
        """Opens a model file once, with default options, and closes it.

        Raises:
            InvalidModelError: the file is not a model of this task.
            OutOfMemoryError: there is not enough memory to try it.
        """
        await asyncio.wrap_future(self.picture_pool.submit(self.instances.try_model, task, path))

    def use_model(
        self, task: VisionTask, path: Path | None, model: HostedModel | None = None
    ) -> None:
        """Makes new streams and pictures run on this file; None restores the task's own file.

        Args:
            model: counts them.
        """
        self._assets.replace(task, path)
        self.instances.drop_idle(task)
        self._models[task.name] = model

    def model_in_use(
        self, task: VisionTask | StreamTask
    ) -> contextlib.AbstractContextManager[None]:
        """Counts a stream or a picture of the model that somebody has loaded for a task."""
        model = self._models.get(task.name)
        return model.in_use() if model else contextlib.nullcontext()

    def stream_ended(self) -> None:
        """Has the memory that streams left free returned, a little later. For the event loop."""
        if self._returning is None:
            loop = asyncio.get_running_loop()
            self._returning = loop.call_later(_RETURN_SECONDS, self._return_memory)

    def _return_memory(self) -> None:
        self._returning = None
        # In the thread that closes detectors, after those that wait there.
        self.instances.closer.submit(return_free_memory)

    async def until_hung(self) -> None:
        """Returns once a thread has not come to the end of its work for `hang_seconds`.

        Whoever waits for it gets a WorkerUnavailableError.
        """
        pools = (self.decode_pool, self.frame_pool, self.picture_pool, self.instances.closer)
        hung = 0
        while not hung:
            await asyncio.sleep(self._hang_seconds / _LOOKS)
            # The first look sees work that has begun a moment ago.
            hung = sum(pool.look(_LOOKS + 1, self._hung) for pool in pools)

    def _hung(self) -> WorkerUnavailableError:
        metrics.HUNG.inc()
        return WorkerUnavailableError(
            f"the task did not come to an end within {self._hang_seconds:g} s; vision_svc starts "
            "again"
        )

    def close(self) -> None:
        """Ends the threads and frees the models. Blocks until the frames that run are done."""
        if self._returning is not None:
            self._returning.cancel()
        for pool in (self.decode_pool, self.frame_pool, self.picture_pool):
            pool.shutdown(wait=True, cancel_futures=True)
        self.instances.shut_down()

    def _count_failure(self) -> None:
        if next(self._failures) == self._max_failures:
            self._on_failures()


def name_thread(name: str) -> None:
    """Gives the calling thread a name that the system's tools show (Linux)."""
    comm = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
    if comm.exists():
        comm.write_text(name[:15])


def _pool(threads: int, name: str) -> WatchedPool:
    return WatchedPool(threads, name, partial(name_thread, name))
