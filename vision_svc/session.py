"""One stream's life: frames in, decoded, run, answered, each step one frame ahead of the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from shared.errors import InvalidArgumentError
from shared.frames.decoder import FrameDecoder, is_video
from shared.frames.types import DecodedFrame, EncodedFrame
from vision_svc import metrics
from vision_svc.detector import Mode, Response
from vision_svc.flow import ahead
from vision_svc.instances import DEFAULT_STEP_MS, Instance
from vision_svc.options import FramePolicy, Options, options_of_call, parse_options

if TYPE_CHECKING:
    from vision_svc.engine import Engine
    from vision_svc.tasks import VisionTask

Metadata: TypeAlias = Mapping[str, str]
# A frame with the options that came with it.
Incoming: TypeAlias = AsyncIterator[tuple[EncodedFrame, Metadata]]
_Waiting: TypeAlias = EncodedFrame | DecodedFrame


@dataclass(frozen=True)
class _Answer:
    response: Response
    frame: DecodedFrame
    inference_seconds: float


class Session:
    """Answers the frames of one stream of one task.

    At most four frames are in memory: read, decoding, waiting, running. What a session holds is
    free as soon as `answers` is closed, but for a frame that runs at that moment.
    """

    def __init__(
        self, engine: Engine, task: VisionTask, call: Metadata, policy: FramePolicy
    ) -> None:
        self._engine = engine
        self._task = task
        self._call = options_of_call(call)
        self._keep_all = policy == "every"
        self._decoder = FrameDecoder(engine.limits)
        self._options: Options | None = None
        self._first_metadata: Metadata = {}
        self._instance: Instance | None = None
        self._last_timestamp: int | None = None
        self._dropped = 0

    async def answers(self, incoming: Incoming) -> AsyncIterator[Response]:
        """One answer a frame, in order.

        Raises:
            ServiceError: a frame or an option was refused, or a limit was reached.
        """
        decoded = ahead(
            self._prepare(self._read(incoming)),
            on_drop=None if self._keep_all else self._count_drop,
        )
        try:
            async with aclosing(ahead(self._run(decoded))) as answers:
                async for answer in answers:
                    yield self._stamp(answer)
        finally:
            self._end()

    async def _read(self, incoming: Incoming) -> AsyncGenerator[EncodedFrame]:
        async for frame, metadata in incoming:
            if self._options is None:
                self._begin(metadata)
            elif metadata and metadata != self._first_metadata:
                raise InvalidArgumentError(
                    f"frame {frame.position}: options cannot change within a stream",
                    field="metadata",
                )
            metrics.FRAMES_RECEIVED.labels(self._task.name).inc()
            yield frame

    def _begin(self, metadata: Metadata) -> None:
        """The first frame: reads its options and takes one of the places for streams."""
        options = parse_options(self._task.options, self._call, metadata)
        self._engine.open_stream()
        metrics.OPEN_STREAMS.labels(self._task.name).inc()
        self._options, self._first_metadata = options, dict(metadata)

    async def _prepare(self, frames: AsyncGenerator[EncodedFrame]) -> AsyncGenerator[_Waiting]:
        """Decodes what must not be skipped; under "latest" other frames wait as they came."""
        async with aclosing(frames):
            async for frame in frames:
                if self._keep_all or is_video(frame.format):
                    for decoded in await self._decode(frame):
                        yield decoded
                else:
                    yield frame
        for decoded in await self._engine.in_decoder(self._decoder.flush):
            yield decoded

    async def _decode(self, frame: EncodedFrame) -> list[DecodedFrame]:
        if self._decoder.is_free(frame):  # not worth a thread
            decoded = self._decoder.decode(frame)
        else:
            decoded = await self._engine.in_decoder(self._decoder.decode, frame)
        for each in decoded:
            metrics.DECODE_SECONDS.labels(self._task.name).observe(each.decode_seconds)
        return decoded

    async def _run(self, frames: AsyncGenerator[_Waiting]) -> AsyncGenerator[_Answer]:
        async with aclosing(frames):
            async for waiting in frames:
                if isinstance(waiting, DecodedFrame):
                    yield await self._detect(waiting)
                    continue
                for frame in await self._decode(waiting):
                    yield await self._detect(frame)

    async def _detect(self, frame: DecodedFrame) -> _Answer:
        if self._instance is None:
            self._instance = await self._open()
        step = self._step(frame.source.timestamp_ms)
        response, seconds = await self._engine.in_worker(_timed_detect, self._instance, frame, step)
        return _Answer(response, frame, seconds)

    def _step(self, timestamp_ms: int) -> int:
        """How far the stream's own clock goes on for a frame of the caller's clock."""
        last, self._last_timestamp = self._last_timestamp, timestamp_ms
        return DEFAULT_STEP_MS if last is None else timestamp_ms - last

    async def _open(self) -> Instance:
        instances = self._engine.instances
        future = self._engine.submit_to_worker(
            instances.acquire, self._task, self._options or {}, Mode.VIDEO
        )
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # The thread may be half-way through: what it makes belongs to nobody any more.
            def release(done: Future[Instance]) -> None:
                if not done.cancelled() and not done.exception():
                    instances.release(done.result())

            future.add_done_callback(release)
            raise

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
        metrics.FRAMES_ANSWERED.labels(self._task.name).inc()
        return response

    def _count_drop(self, _: _Waiting) -> None:
        self._dropped += 1
        metrics.FRAMES_DROPPED.labels(self._task.name).inc()

    def _end(self) -> None:
        if self._options is not None:
            self._engine.close_stream()
            metrics.OPEN_STREAMS.labels(self._task.name).dec()
        if self._instance is not None:
            self._engine.instances.release(self._instance)


def _timed_detect(instance: Instance, frame: DecodedFrame, step: int) -> tuple[Response, float]:
    start = time.perf_counter()
    response = instance.detect(frame.image, step)
    return response, time.perf_counter() - start
