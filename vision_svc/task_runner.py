"""Runs vision tasks on single pictures and on streams.

Importing this module imports MediaPipe, which takes a second: do it off the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from shared.caller import caller
from shared.errors import ServiceError, UnknownOptionError
from shared.places import Places
from vision_svc import metrics
from vision_svc.detector import Mode, Response, StreamTask
from vision_svc.frames.decoder import decode_picture
from vision_svc.options import (
    FRAME_POLICY_KEY,
    FramePolicyName,
    frame_policy_of_call,
    options_of_call,
    parse_options,
)
from vision_svc.streams.every import EveryFrame
from vision_svc.streams.latest import LatestFrame
from vision_svc.streams.session import Incoming, Session
from vision_svc.tasks import STREAM_TASKS, TASKS

if TYPE_CHECKING:
    from concurrent.futures import Future

    from vision_svc.frames.types import EncodedFrame
    from vision_svc.runtime import VisionRuntime
    from vision_svc.streams.policy import FramePolicy

_POLICIES: Mapping[FramePolicyName, type[FramePolicy]] = {
    "every": EveryFrame,
    "latest": LatestFrame,
}


class TaskRunner:
    """Runs tasks by their names. The event loop only waits: decoding and inference use threads.

    Args:
        runtime: threads, limits and detectors.
        max_waiting_calls: single pictures that may wait for a thread.
    """

    def __init__(self, runtime: VisionRuntime, max_waiting_calls: int) -> None:
        for name in (*TASKS, *STREAM_TASKS):
            metrics.of_task(name)
        self._runtime = runtime
        limit = runtime.threads + max_waiting_calls
        self._places = Places(limit, f"{limit} pictures are running or waiting, which is the limit")

    async def detect(
        self, task_name: str, frame: EncodedFrame, metadata: Mapping[str, str]
    ) -> Response:
        """Runs a task on one picture.

        Args:
            task_name: a key of `TASKS`.
            frame: the picture.
            metadata: the call's, with its options.

        Raises:
            ServiceError: the picture or an option was refused, or a limit was reached.
        """
        task = TASKS[task_name]
        figures = metrics.of_task(task.name)
        options = parse_options(task.options, options_of_call(metadata))
        left: list[ServiceError] = []

        def run() -> Response:
            picture = decode_picture(frame, self._runtime.limits)
            figures.decode_seconds.observe(picture.decode_seconds)
            with self._runtime.instances.borrow(task, options, Mode.IMAGE) as instance:
                start = time.perf_counter()
                response = instance.detect(picture.image)
                inference = time.perf_counter() - start
            busy = picture.decode_seconds + inference
            response.timing.decode_ms = picture.decode_seconds * 1000
            response.timing.inference_ms = inference * 1000
            waited = time.perf_counter() - frame.received_at - busy
            response.timing.waiting_ms = max(0.0, waited) * 1000
            return response

        future: Future[Response] | None = None

        def leave(error: ServiceError) -> bool:
            if future is None or not future.cancel():
                return False  # it runs
            left.append(error)
            return True

        place = self._places.take(caller(), leave)
        figures.received.inc()
        try:
            with self._runtime.model_in_use(task):
                future = self._runtime.picture_pool.submit(run)
                response = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if left:
                raise left.pop() from None
            raise
        finally:
            future = None  # an error has this frame, and must not hold its own future
            self._places.free(place)
        figures.answered.inc()
        return response

    def stream(
        self, task_name: str, incoming: Incoming, metadata: Mapping[str, str]
    ) -> AsyncIterator[Response]:
        """Runs a task on each frame of a stream; see `Session.answers`.

        Raises:
            UnknownOptionError: there is no such frame policy, or it is not one for this task.
        """
        task = STREAM_TASKS.get(task_name) or TASKS[task_name]
        policy = frame_policy_of_call(metadata)
        if policy != "every" and isinstance(task, StreamTask) and task.every_frame:
            raise UnknownOptionError(
                f"{FRAME_POLICY_KEY} must be every for {task_name}: all frames of a film count",
                field=FRAME_POLICY_KEY,
            )
        options = options_of_call(metadata)
        return Session(self._runtime, task, options, _POLICIES[policy]).answers(incoming)
