"""One stream: reads its frames, hands out the answers, and ends.

The states of a session:

    NEW ---- first frame: options are read, a place for streams is taken ----> OPEN
    OPEN --- the client half-closes, or a frame is refused: an End follows --> DRAINING
    OPEN --- its place goes to another caller: its queue is dropped for an End > DRAINING
    DRAINING the End comes out, after the answers to all frames before it ---> CLOSED

From every state, a client that cancels leads to CLOSED at once: queued frames are dropped, and the
detector is free as soon as the frame that runs is done.

The way of a frame, which the frame policy (`every`, `latest`) controls; its stages run in threads,
the rest in the event loop:

    client -> _read -> policy.room, policy.put -> Stages: decode -> Stages: detect
                                                                          |
    client <- _stamp <- answers <- policy.answer_taken <- policy.answer_ready
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from ml import mediapipe_pb2 as pb
from shared.caller import caller
from shared.errors import InvalidArgumentError, ServiceError
from shared.idle import set_idle_seconds
from vision_svc import metrics
from vision_svc.detector import Answer
from vision_svc.frames.types import EncodedFrame, SkippedFrame
from vision_svc.options import STREAM_OPTIONS, parse_options, split_options
from vision_svc.streams.stages import End, Stages

if TYPE_CHECKING:
    from shared.places import Place
    from vision_svc.detector import Response, StreamTask, VisionTask
    from vision_svc.runtime import VisionRuntime
    from vision_svc.streams.policy import FramePolicy

# Frames, each with the metadata that came with it.
Incoming: TypeAlias = AsyncIterator[tuple[EncodedFrame, Mapping[str, str]]]


class Session:
    """Answers the frames of one stream of one task.

    Args:
        runtime: threads, limits, detectors and places.
        task: the task to run.
        call_options: the options of the call; those of the first frame override them.
        policy: which frames are in flight, and whether newer ones replace them.
    """

    def __init__(
        self,
        runtime: VisionRuntime,
        task: VisionTask | StreamTask,
        call_options: Mapping[str, str],
        policy: type[FramePolicy],
    ) -> None:
        self._runtime = runtime
        self._task = task
        self._metrics = metrics.of_task(task.name)
        self._call_options = call_options
        self._first_metadata: Mapping[str, str] | None = None
        self._stages = Stages(runtime, task, self._on_answers)
        self._policy = policy(self._stages, self._count_drop)
        self._dropped = 0
        self._answers: deque[Answer | End] = deque()
        self._answered = asyncio.Event()
        self._place: Place | None = None
        self._in_use = contextlib.ExitStack()
        self._reader: asyncio.Task[None] | None = None

    async def answers(self, incoming: Incoming) -> AsyncIterator[Response]:
        """Yields the answers, in the order of the frames.

        Raises:
            ServiceError: a frame or an option was refused, or a limit was reached.
        """
        reader = self._reader = asyncio.create_task(self._read(incoming))
        try:
            while isinstance(answer := await self._next_answer(), Answer):
                yield self._stamp(answer)
            if answer.error:
                raise answer.error
        finally:
            self._close()
            reader.cancel()
            await asyncio.wait([reader])

    async def _read(self, incoming: Incoming) -> None:
        end = End()
        try:
            async for frame, metadata in incoming:
                self._check_metadata(frame, metadata)
                self._metrics.received.inc()
                await self._policy.room()
                self._policy.put(frame)
        except Exception as error:  # noqa: BLE001
            end = End(error)
        await self._policy.room()
        self._policy.put(end)

    def _check_metadata(self, frame: EncodedFrame, metadata: Mapping[str, str]) -> None:
        """Opens the stream with the first frame's options; later frames must not change them."""
        if self._first_metadata is None:
            known = (*self._task.options, *STREAM_OPTIONS)
            options, stream = split_options(parse_options(known, self._call_options, metadata))
            self._stages.open(options, stream)
            if stream.idle_seconds:
                set_idle_seconds(stream.idle_seconds)
            self._place = self._runtime.streams.take(caller(), self._leave)
            self._metrics.open_streams.inc()
            self._in_use.enter_context(self._runtime.model_in_use(self._task))
            self._first_metadata = dict(metadata)
        elif metadata and metadata != self._first_metadata:
            raise InvalidArgumentError(
                f"frame {frame.position}: options cannot change within a stream", field="metadata"
            )

    async def _next_answer(self) -> Answer | End:
        while not self._answers:
            self._answered.clear()
            await self._answered.wait()
        answer = self._answers.popleft()
        self._policy.answer_taken()
        return answer

    def _on_answers(self, answers: Sequence[Answer | End]) -> None:
        self._answers.extend(answers)
        self._answered.set()
        self._policy.answer_ready(len(answers))

    def _count_drop(self) -> None:
        self._dropped += 1
        self._metrics.dropped.inc()

    def _stamp(self, answer: Answer) -> Response:
        """The response with its frame's marks and where the time went."""
        response, frame = answer.response, answer.frame
        if isinstance(response, pb.MediaSequenceResponse):
            self._metrics.answered.inc(response.total_frames)
            return response
        assert frame is not None, "all other responses belong to a frame"
        response.timestamp_ms = frame.source.timestamp_ms
        response.frame_number = frame.source.number
        response.frames_dropped = self._dropped
        in_service = time.perf_counter() - frame.source.received_at
        decode_seconds = 0.0 if isinstance(frame, SkippedFrame) else frame.decode_seconds
        busy = decode_seconds + answer.inference_seconds
        response.timing.decode_ms = decode_seconds * 1000
        response.timing.inference_ms = answer.inference_seconds * 1000
        response.timing.waiting_ms = max(0.0, in_service - busy) * 1000
        if isinstance(frame, SkippedFrame):
            self._metrics.skipped[frame.reason.name].inc()
        else:
            self._metrics.answered.inc()
        return response

    def _leave(self, error: ServiceError) -> bool:
        """Ends the stream, since another caller gets its place; its detector is free at once."""
        assert self._reader is not None, "it has read the first frame"
        self._reader.cancel()
        self._close()
        self._answers.clear()
        self._answers.append(End(error))
        self._answered.set()
        return True

    def _close(self) -> None:
        self._stages.close()
        self._in_use.close()
        if self._place is not None:
            self._runtime.streams.free(self._place)
            self._runtime.stream_ended()
            self._place = None
            self._metrics.open_streams.dec()
