"""The task instance of one stream: opened for its first frame, released when the stream ends."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from shared.errors import CallCancelledError
from vision_svc.detector import Answer, Mode, Response, skipped
from vision_svc.instances import DEFAULT_STEP_MS, Instance, Instances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vision_svc.detector import VisionTask
    from vision_svc.frames.types import DecodedFrame, SkippedFrame
    from vision_svc.options import Options


class Tracker:
    """Runs a task on the frames of one stream. One thread at a time runs it; any may close it.

    If the size of the pictures changes, the task starts again with a new instance: positions in
    the earlier pictures say nothing about the new ones, and MediaPipe's holistic graph fails.
    """

    def __init__(self, instances: Instances, task: VisionTask) -> None:
        self._instances = instances
        self._task = task
        self._instance: Instance | None = None
        self._shape: tuple[int, ...] = ()
        self._last_timestamp: int | None = None
        self._closed = False
        self._lock = threading.Lock()

    def follow(self, frame: DecodedFrame, options: Options) -> Sequence[Answer]:
        response, seconds = self.detect(frame, options)
        return [Answer(response, frame, seconds)]

    def skip(self, frame: SkippedFrame) -> Sequence[Answer]:
        return [skipped(self._task.response(), frame)]

    def finish(self, options: Options) -> Sequence[Answer]:
        del options
        return []  # each frame was answered at once

    def detect(self, frame: DecodedFrame, options: Options) -> tuple[Response, float]:
        """Runs the task on the next frame; returns the response and how long it took, in seconds.

        Raises:
            ServiceError: as `Instances.acquire` and `Instance.detect`.
            CallCancelledError: the tracker was closed.
        """
        shape = frame.image.shape
        if self._shape != shape and self._task.keeps_state and (outgrown := self._detach()):
            self._instances.close(outgrown)
        self._shape = shape
        instance = self._instance or self._open(options)
        step = self._clock_step(frame.source.timestamp_ms)
        start = time.perf_counter()
        return instance.detect(frame.image, step), time.perf_counter() - start

    def close(self) -> None:
        """Releases the instance, after the frame that runs now. Does not block."""
        instance = self._detach(closed=True)
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

    def _detach(self, *, closed: bool = False) -> Instance | None:
        """Takes the instance out of the tracker; the caller must release or close it."""
        with self._lock:
            self._closed |= closed
            instance, self._instance = self._instance, None
            return instance

    def _clock_step(self, timestamp_ms: int) -> int:
        """The step of the stream's own clock, in ms, for a frame with this timestamp."""
        last, self._last_timestamp = self._last_timestamp, timestamp_ms
        return DEFAULT_STEP_MS if last is None else timestamp_ms - last
