"""The task instance of one stream: opened with its first frame, and free at once when it ends."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from shared.errors import CallCancelledError
from vision_svc.detector import Mode, Response
from vision_svc.instances import DEFAULT_STEP_MS, Instance, Instances

if TYPE_CHECKING:
    from vision_svc.detector import VisionTask
    from vision_svc.frames.types import DecodedFrame
    from vision_svc.options import Options


class Tracker:
    """Runs a task on the frames of one stream. One thread at a time runs it; any may close it.

    It follows pictures of one size. What is followed says nothing of pictures of another one, and
    MediaPipe's holistic graph fails on them; so there the task starts anew.
    """

    def __init__(self, instances: Instances, task: VisionTask) -> None:
        self._instances = instances
        self._task = task
        self._instance: Instance | None = None
        self._shape: tuple[int, ...] = ()
        self._last_timestamp: int | None = None
        self._closed = False
        self._lock = threading.Lock()

    def detect(self, frame: DecodedFrame, options: Options) -> tuple[Response, float]:
        """Runs the task on the next frame: the answer, and the seconds that it took.

        Raises:
            ServiceError: as `Instances.acquire` and `Instance.detect`.
            CallCancelledError: it was closed.
        """
        shape = frame.image.shape
        if self._shape != shape and self._task.keeps_state and (outgrown := self._let_go()):
            self._instances.close(outgrown)
        self._shape = shape
        instance = self._instance or self._open(options)
        step = self._clock_step(frame.source.timestamp_ms)
        start = time.perf_counter()
        return instance.detect(frame.image, step), time.perf_counter() - start

    def close(self) -> None:
        """Frees the instance, once a frame that runs now is done. Does not block."""
        instance = self._let_go(closed=True)
        if instance:
            self._instances.release(instance)

    def _open(self, options: Options) -> Instance:
        if not self._closed:
            instance = self._instances.acquire(self._task, options, Mode.VIDEO)
            with self._lock:
                if not self._closed:
                    self._instance = instance
                    return instance
            self._instances.release(instance)
        raise CallCancelledError("the stream has ended")

    def _let_go(self, *, closed: bool = False) -> Instance | None:
        """Takes the instance away: whoever calls this has to release or close it."""
        with self._lock:
            self._closed |= closed
            instance, self._instance = self._instance, None
            return instance

    def _clock_step(self, timestamp_ms: int) -> int:
        """How far the stream's own clock goes on for a frame of the caller's clock."""
        last, self._last_timestamp = self._last_timestamp, timestamp_ms
        return DEFAULT_STEP_MS if last is None else timestamp_ms - last
