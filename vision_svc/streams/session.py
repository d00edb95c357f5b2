"""One stream's life: frames in, decoded, run, answered, each step ahead of the next."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from shared.errors import InvalidArgumentError
from vision_svc import metrics
from vision_svc.detector import Response
from vision_svc.frames.decoder import (
    FrameDecoder,
    is_video,
)
from vision_svc.frames.types import (
    DecodedFrame,
    EncodedFrame,
)
from vision_svc.options import FramePolicy, Options, options_of_call, parse_options
from vision_svc.streams.latest import Newest
from vision_svc.streams.serial_executor import Lane
from vision_svc.streams.tracker import Tracker

if TYPE_CHECKING:
    from vision_svc.detector import VisionTask
    from vision_svc.engine import Engine

Metadata: TypeAlias = Mapping[str, str]
T = TypeVar("T")
# A frame with the options that came with it.
Incoming: TypeAlias = AsyncIterator[tuple[EncodedFrame, Metadata]]

# Frames between the reader and the client under "every": decoding, waiting, running, answered.
_MOST_FRAMES = 4
# Under "latest", video frames that are not decoded yet, and answers that the client has not taken
# while the task goes on.
_MOST_UNDECODED = 2
_MOST_ANSWERS = 2


@dataclass(frozen=True)
class _End:
    """What comes after the last frame."""

    error: Exception | None = None


@dataclass(frozen=True)
class _Answer:
    response: Response
    frame: DecodedFrame
    inference_seconds: float


_Step: TypeAlias = EncodedFrame | DecodedFrame | _End
# Under "latest" the place where the newest frame waits: it is taken when a thread is free.
_Turn: TypeAlias = _Step | Newest[_Step]


class Session:
    """Answers the frames of one stream of one task.

    The event loop reads frames and hands out answers. In between they pass through two lanes, one
    that decodes and one that runs the task, so that a frame is decoded while the one before it
    runs. What a session holds is free as soon as `answers` is closed, but for a frame that runs at
    that moment.
    """

    def __init__(
        self, engine: Engine, task: VisionTask, call: Metadata, policy: FramePolicy
    ) -> None:
        self._engine = engine
        self._task = task
        self._metrics = metrics.of_task(task.name)
        self._call = options_of_call(call)
        self._keep_all = policy == "every"
        self._decoder = FrameDecoder(engine.limits)
        self._decoding: Lane[_Step] = Lane(engine.decoders, self._decode)
        self._running: Lane[_Turn] = Lane(engine.workers, self._detect)
        self._options: Options | None = None
        self._first_metadata: Metadata = {}
        self._closed = False
        # The event loop's: what is under way, and what it does not wait for at the moment.
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._answered = asyncio.Event()
        self._undecoded = 0
        self._unanswered = 0
        self._waiting: Newest[_Step] = Newest()
        self._answers: deque[_Answer | _End] = deque()
        self._dropped = 0
        self._has_video = False
        self._tracker = Tracker(engine.instances, task)

    async def answers(self, incoming: Incoming) -> AsyncIterator[Response]:
        """One answer a frame, in order.

        Raises:
            ServiceError: a frame or an option was refused, or a limit was reached.
        """
        reader = asyncio.create_task(self._read(incoming))
        try:
            while isinstance(answer := await self._next_answer(), _Answer):
                yield self._stamp(answer)
            if answer.error:
                raise answer.error
        finally:
            self._end()
            reader.cancel()
            await asyncio.wait([reader])

    async def _next_answer(self) -> _Answer | _End:
        while not self._answers:
            self._answered.clear()
            await self._answered.wait()
        answer = self._answers.popleft()
        self._go_on()
        return answer

    async def _read(self, incoming: Incoming) -> None:
        end = _End()
        try:
            async for frame, metadata in incoming:
                self._check_options(frame, metadata)
                self._metrics.received.inc()
                await self._take(frame)
        except Exception as error:  # noqa: BLE001
            end = _End(error)
        await self._take(end)

    def _check_options(self, frame: EncodedFrame, metadata: Metadata) -> None:
        if self._options is None:
            options = parse_options(self._task.options, self._call, metadata)
            self._engine.open_stream()
            self._metrics.open_streams.inc()
            self._options, self._first_metadata = options, dict(metadata)
        elif metadata and metadata != self._first_metadata:
            raise InvalidArgumentError(
                f"frame {frame.position}: options cannot change within a stream", field="metadata"
            )

    async def _take(self, step: EncodedFrame | _End) -> None:
        """Starts a frame's way, as soon as there is room for it."""
        while not self._has_room():
            self._room.clear()
            await self._room.wait()
        if self._goes_to_decoder(step):
            if self._keep_all:
                self._unanswered += 1
            else:
                self._undecoded += 1
            self._decoding.put(step)
        elif self._keep_all:
            self._start(step)
        else:
            self._offer(step)

    def _has_room(self) -> bool:
        if self._keep_all:
            return self._unanswered + len(self._answers) < _MOST_FRAMES
        return self._undecoded < _MOST_UNDECODED

    def _goes_to_decoder(self, step: EncodedFrame | _End) -> bool:
        """Whether it is decoded in a step of its own: under "latest" only what must not be skipped.

        Once a stream has had frames that go there, what follows must not overtake them.
        """
        if self._keep_all:
            if isinstance(step, _End) or not self._decoding.idle:
                return True
            return not self._decoder.is_free(step)
        self._has_video |= isinstance(step, EncodedFrame) and is_video(step.format)
        return self._has_video

    def _decode(self, step: _Step) -> None:
        """The decoding lane."""
        steps = list(self._pictures(step))
        if not self._keep_all:
            self._call_loop(self._decoded, steps)
            return
        for each in steps:
            self._running.put(each)
        if len(steps) != 1:
            self._call_loop(self._expect, len(steps) - 1)

    def _pictures(self, step: _Step) -> Iterator[_Step]:
        """What comes of a step; an error comes after the pictures before it."""
        error = step.error if isinstance(step, _End) else None
        try:
            if isinstance(step, EncodedFrame):
                yield from self._decoder.decode(step)
            else:
                yield from self._decoder.flush()
        except Exception as fault:  # noqa: BLE001
            yield _End(error or fault)
        else:
            if isinstance(step, _End):
                yield step

    def _expect(self, more: int) -> None:
        self._unanswered += more
        self._go_on()

    def _decoded(self, steps: list[_Step]) -> None:
        self._undecoded -= 1
        for step in steps:
            self._offer(step)
        self._go_on()

    def _offer(self, step: _Step) -> None:
        """Under "latest": a frame that still waits is replaced by this one."""
        if isinstance(step, _End):
            self._waiting.put_end(step)
        elif self._waiting.put(step):
            self._dropped += 1
            self._metrics.dropped.inc()
        self._go_on()

    def _go_on(self) -> None:
        """Uses the room that has come free."""
        if self._waiting and not self._unanswered and len(self._answers) < _MOST_ANSWERS:
            self._start(self._waiting)
        if self._has_room():
            self._room.set()

    def _start(self, turn: _Turn) -> None:
        self._unanswered += 1
        self._running.put(turn)

    def _detect(self, turn: _Turn) -> None:
        """The running lane. What is not decoded yet costs nothing to decode, or may be skipped."""
        try:
            step = turn.take() if isinstance(turn, Newest) else turn
            if isinstance(step, EncodedFrame):
                step = self._decoder.decode_still(step)
            answer = step if isinstance(step, _End) else self._answer(step)
        except Exception as error:  # noqa: BLE001
            answer = _End(error)
        self._call_loop(self._deliver, answer)

    def _answer(self, frame: DecodedFrame) -> _Answer:
        self._metrics.decode_seconds.observe(frame.decode_seconds)
        response, seconds = self._tracker.detect(frame, self._options or {})
        return _Answer(response, frame, seconds)

    def _deliver(self, answer: _Answer | _End) -> None:
        self._unanswered -= 1
        self._answers.append(answer)
        self._answered.set()
        self._go_on()

    def _call_loop(self, function: Callable[[T], None], argument: T) -> None:
        if not self._closed:
            self._loop.call_soon_threadsafe(function, argument)

    def _stamp(self, answer: _Answer) -> Response:
        """The answer with the marks of its frame and where the time went."""
        response, frame = answer.response, answer.frame
        response.timestamp_ms = frame.source.timestamp_ms
        response.frame_number = frame.source.number
        response.frames_dropped = self._dropped
        in_service = time.perf_counter() - frame.source.received_at
        busy = frame.decode_seconds + answer.inference_seconds
        response.timing.decode_ms = frame.decode_seconds * 1000
        response.timing.inference_ms = answer.inference_seconds * 1000
        response.timing.waiting_ms = max(0.0, in_service - busy) * 1000
        self._metrics.answered.inc()
        return response

    def _end(self) -> None:
        self._closed = True
        for lane in (self._decoding, self._running):
            lane.close()
        if self._options is not None:
            self._engine.close_stream()
            self._metrics.open_streams.dec()
        self._tracker.close()
