"""Task instances: detectors in memory, within a budget, with idle ones kept for later callers.

The life of an instance, by the methods of `Instances`:

               acquire                            release, if it can be reused
    closed ---------------> in use, for `detect` -------------------------------> idle
      ^    _reserve, _open    |        ^                                          |  |
      |                       |        +------------------ acquire ---------------+  |
      |                       |           the same task, file, mode and options      |
      +-----------------------+                                                      |
      |   release, if it cannot be reused; close                                     |
      +------------------------------------------------------------------------------+
          too many are idle, drop_idle, or _reserve needs the memory

`_reserve` takes an instance's memory from the budget, and `_free` gives it back after `_close`; an
idle instance that makes room for another one counts as free at once. All but `close` leave the
closing to a thread of its own, because it waits for MediaPipe's threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from shared.errors import (
    CallCancelledError,
    InternalError,
    InvalidModelError,
    OutOfMemoryError,
    ServiceError,
)
from vision_svc import metrics
from vision_svc.detector import Detector, Mode, Response
from vision_svc.options import parse_options
from vision_svc.watched_pool import WatchedPool

if TYPE_CHECKING:
    from vision_svc.assets import Assets
    from vision_svc.detector import VisionTask
    from vision_svc.frames.types import Rgb
    from vision_svc.options import Options, Value

log = logging.getLogger(__name__)

# Task, file, mode, options, and the file's modification time: another file may take its name.
_Key: TypeAlias = "tuple[str, Path, Mode, tuple[tuple[str, Value], ...], int]"

# Steps of an instance's own clock, in ms. The default is used if the caller's clock stands still,
# goes back or jumps by more than the maximum. MediaPipe uses the clock to smooth movement, and
# refuses one that does not increase.
DEFAULT_STEP_MS = 33
MAX_STEP_MS = 10_000

# A picture that models are tried on.
_BLACK: Rgb = np.zeros((64, 64, 3), np.uint8)

# Memory of an instance in multiples of its file's size, if that is more than the task's own model
# takes: callers may load files of any size.
_MEMORY_PER_FILE_SIZE = 4


class Instance:
    """A detector in memory. It belongs to one stream or call at a time."""

    def __init__(
        self,
        task: VisionTask,
        key: _Key,
        memory_mb: int,
        detector: Detector,
        on_failure: Callable[[], None],
    ) -> None:
        self.task = task
        self.key = key
        self.memory_mb = memory_mb
        self.failed = False
        self._detector = detector
        self._on_failure = on_failure
        self._metrics = metrics.of_task(task.name)
        self._closed = False
        self._time_ms = 0
        self._lock = threading.Lock()

    @property
    def reusable(self) -> bool:
        """Whether a later caller could use it without traces of this caller's frames."""
        keeps_state = self.task.keeps_state and self.key[2] is Mode.VIDEO
        return not (keeps_state or self.failed or self._lock.locked())

    def detect(self, image: Rgb, step_ms: int = DEFAULT_STEP_MS) -> Response:
        """Runs the task on the picture that follows the last one by `step_ms`.

        Raises:
            CallCancelledError: the instance was closed.
            InternalError: the graph failed, and the instance with it.
        """
        with self._lock:
            if self._closed:
                raise CallCancelledError(f"{self.task.name} was closed")
            self._time_ms += step_ms if 0 < step_ms <= MAX_STEP_MS else DEFAULT_STEP_MS
            start = time.perf_counter()
            try:
                response = self._detector.detect(image, self._time_ms)
            except Exception as error:
                self.failed = True
                log.exception("a task failed", extra={"task": self.task.name})
                self._metrics.failed_graphs.inc()
                self._on_failure()
                raise InternalError(f"{self.task.name} failed on a frame") from error
            self._metrics.inference_seconds.observe(time.perf_counter() - start)
            return response

    def try_out(self) -> None:
        """Runs the task on a black picture.

        Raises:
            Exception: the model does not fit the task, such as one with too few labels.
        """
        with self._lock:
            self._detector.detect(_BLACK, DEFAULT_STEP_MS)

    def close(self) -> None:
        """Frees the model, after the frame that runs now."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._detector.close()


class Instances:
    """Opens instances within a memory budget and keeps idle ones for reuse. Safe for threads.

    `acquire`, `try_model` and `close` block, for as long as a model takes to load or to close.

    Args:
        assets: finds the model files.
        memory_mb: the budget for all instances, in MiB.
        max_idle: how many idle instances are kept; the oldest are closed first.
        on_failure: called after each failed graph, in the thread that ran it.

    Attributes:
        closer: the thread that closes instances.
    """

    def __init__(
        self, assets: Assets, memory_mb: int, max_idle: int, on_failure: Callable[[], None]
    ) -> None:
        self._assets = assets
        self._memory_mb = memory_mb
        self._max_idle = max_idle
        self._on_failure = on_failure
        self._used_mb = 0
        self._of_file: Counter[Path] = Counter()
        self._idle: list[Instance] = []
        self._lock = threading.Lock()
        # Closing waits for MediaPipe's threads; callers should not.
        self.closer = WatchedPool(1, "close")

    def memory_mb_of(self, path: Path) -> int:
        """MiB that all instances of a file take, idle ones included."""
        with self._lock:
            return self._of_file[path]

    def acquire(self, task: VisionTask, options: Options, mode: Mode) -> Instance:
        """Returns an instance for the caller alone, until `release`.

        Raises:
            ModelNotLoadedError: the task has no model file.
            InternalError: the file cannot be opened; files that callers load were tried before.
            UnknownOptionError: the model does not have what an option names.
            OutOfMemoryError: the budget is exhausted.
        """
        path = self._assets.find(task, options)
        key = (task.name, path, mode, tuple(sorted(options.items())), path.stat().st_mtime_ns)
        with self._lock:
            for instance in self._idle:
                if instance.key == key:
                    self._idle.remove(instance)
                    return instance
            memory_mb = self._reserve(task, path, options)
        try:
            return self._open(task, key, options, memory_mb)
        except InvalidModelError as error:
            raise InternalError(error.message) from error

    def try_model(self, task: VisionTask, path: Path) -> None:
        """Opens a file with default options, runs it on a black picture and closes it again.

        Raises:
            InvalidModelError: the file is not a model of this task.
            OutOfMemoryError: the budget is exhausted.
        """
        options = parse_options(task.options)
        with self._lock:
            memory_mb = self._reserve(task, path, options)
        instance = self._open(task, (task.name, path, Mode.IMAGE, (), 0), options, memory_mb)
        try:
            instance.try_out()
        except Exception as error:
            log.exception("a model failed on a picture", extra={"task": task.name})
            raise InvalidModelError(f"{path.name} fails as {task.name} on a picture") from error
        finally:
            self._close(instance)

    def release(self, instance: Instance) -> None:
        """Returns an instance, to be kept for the next caller or closed. Does not block."""
        with self._lock:
            if instance.reusable and self._max_idle:
                self._idle.append(instance)
                surplus = self._idle[: -self._max_idle]
                del self._idle[: -self._max_idle]
            else:
                surplus = [instance]
        for each in surplus:
            self.closer.submit(self._close, each)

    def close(self, instance: Instance) -> None:
        """Closes an instance before it returns, so that there is room for another one."""
        self._close(instance)

    @contextmanager
    def borrow(self, task: VisionTask, options: Options, mode: Mode) -> Iterator[Instance]:
        """`acquire` and `release`."""
        instance = self.acquire(task, options, mode)
        try:
            yield instance
        finally:
            self.release(instance)

    def drop_idle(self, task: VisionTask | None = None) -> None:
        """Closes the idle instances of a task, or of all tasks."""
        with self._lock:
            dropped = [i for i in self._idle if task is None or i.task is task]
            self._idle = [i for i in self._idle if i not in dropped]
        for each in dropped:
            self.closer.submit(self._close, each)

    def shut_down(self) -> None:
        """Closes the idle instances and waits until all closing is done."""
        self.drop_idle()
        self.closer.shutdown(wait=True)

    def _open(self, task: VisionTask, key: _Key, options: Options, memory_mb: int) -> Instance:
        _, path, mode, *_ = key
        try:
            detector = task.open(path, options, mode)
        except ServiceError:  # an option does not suit the model
            self._free(memory_mb)
            raise
        except Exception as error:
            self._free(memory_mb)
            log.exception("a model could not be opened", extra={"task": task.name})
            raise InvalidModelError(f"{path.name} cannot be opened as {task.name}") from error
        metrics.of_task(task.name).instances.inc()
        with self._lock:
            self._of_file[path] += memory_mb
        return Instance(task, key, memory_mb, detector, self._on_failure)

    def _reserve(self, task: VisionTask, path: Path, options: Options) -> int:
        """Reserves an instance's memory, closes idle instances for it if needed, and returns it.

        The caller must hold the lock.
        """
        needed = max(
            task.asset(options).memory_mb, _MEMORY_PER_FILE_SIZE * path.stat().st_size >> 20
        )
        while self._used_mb + needed > self._memory_mb and self._idle:
            oldest = self._idle.pop(0)
            # Counted as free at once: it is closed before the new model has read its file.
            self._used_mb -= oldest.memory_mb
            self.closer.submit(self._close, oldest, counted=False)
        if self._used_mb + needed > self._memory_mb:
            raise OutOfMemoryError(
                f"not enough memory for {task.name}: it needs {needed} MiB, and {self._used_mb} of "
                f"{self._memory_mb} MiB are in use; try again after a stream has ended",
                retry_after=1.0,
                metadata={"instance_memory_mb": str(self._memory_mb)},
            )
        self._used_mb += needed
        return needed

    def _free(self, memory_mb: int) -> None:
        with self._lock:
            self._used_mb -= memory_mb

    def _close(self, instance: Instance, *, counted: bool = True) -> None:
        try:
            instance.close()
        except Exception:
            log.exception("an instance could not be closed", extra={"task": instance.task.name})
        finally:
            metrics.of_task(instance.task.name).instances.dec()
            with self._lock:
                self._of_file[instance.key[1]] -= instance.memory_mb
            if counted:
                self._free(instance.memory_mb)
