"""The two stages of a stream that run in threads: decoding, and the task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from shared.errors import ServiceError
from vision_svc import metrics
from vision_svc.detector import Answer, StreamTask
from vision_svc.frames.decoder import FrameDecoder
from vision_svc.frames.types import DecodedFrame, EncodedFrame, SkippedFrame
from vision_svc.streams.serial_executor import SerialExecutor
from vision_svc.streams.tracker import Tracker

if TYPE_CHECKING:
    from vision_svc.detector import Follower, VisionTask
    from vision_svc.options import Options, StreamOptions
    from vision_svc.runtime import VisionRuntime

T = TypeVar("T")


@dataclass(frozen=True)
class End:
    """Follows the last frame of a stream; with an error, the stream has failed there."""

    error: Exception | None = None


# What passes through the stages: a frame before or after decoding, and at last the end.
StreamItem: TypeAlias = EncodedFrame | DecodedFrame | SkippedFrame | End


class Stages:
    """Decodes a stream's frames and runs the task on them, each stage in threads and in order.

    The stages run side by side: a frame is decoded while the one before it runs.

    Args:
        runtime: the threads and detectors.
        task: the task to run.
        on_answers: called in the event loop for each item that has passed the second stage, with
            the answers that it has completed.

    `open` must be called before the first frame.
    """

    def __init__(
        self,
        runtime: VisionRuntime,
        task: VisionTask | StreamTask,
        on_answers: Callable[[Sequence[Answer | End]], None],
    ) -> None:
        self._options: Options = {}
        self._limits = runtime.limits
        self._on_answers = on_answers
        self._metrics = metrics.of_task(task.name)
        self._decoder = FrameDecoder(runtime.limits)
        self._follower: Follower = (
            task.open(runtime.instances, runtime.limits)
            if isinstance(task, StreamTask)
            else Tracker(runtime.instances, task)
        )
        self._decoding = SerialExecutor(runtime.decode_pool, self._decode, self._fail)
        self._running = SerialExecutor(runtime.frame_pool, self._detect, self._fail)
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def open(self, options: Options, stream: StreamOptions) -> None:
        """Sets the options of the task and of the stream."""
        self._options = options
        self._decoder = FrameDecoder(
            self._limits, skips_bad=stream.skips_bad, extradata=stream.extradata
        )

    def decode(self, item: EncodedFrame | End, pass_on: Callable[[list[StreamItem]], None]) -> None:
        """Queues an item for the first stage.

        Args:
            item: a frame, or the end, which flushes a video decoder.
            pass_on: called in the decoding thread with the result: pictures and skipped frames, and
                an `End` after them if decoding has failed or the item was one.
        """
        self._decoding.put((item, pass_on))

    def detect(self, take: Callable[[], StreamItem]) -> None:
        """Queues a turn of the second stage.

        Args:
            take: returns the item to run; called in the thread, once the turn has come. A frame
                that is still encoded must be a picture by itself and is decoded there.
        """
        self._running.put(take)

    def can_skip_decoding(self, frame: EncodedFrame) -> bool:
        """Whether a frame may go straight to the second stage without overtaking another one."""
        return self._decoding.idle and self._decoder.needs_no_decoding(frame)

    def call_in_loop(self, function: Callable[[T], None], argument: T) -> None:
        """Calls a function in the event loop, from any thread; ignored after `close`."""
        if not self._closed:
            self._loop.call_soon_threadsafe(function, argument)

    def close(self) -> None:
        """Drops what is queued and frees the detector. A frame that runs now is still finished."""
        self._closed = True
        self._decoding.close()
        self._running.close()
        self._follower.close()

    def _fail(self, error: BaseException) -> None:
        """Ends the stream whose frame hangs in a thread."""
        if isinstance(error, ServiceError):
            self.call_in_loop(self._on_answers, [End(error)])

    def _decode(
        self, queued: tuple[EncodedFrame | End, Callable[[list[StreamItem]], None]]
    ) -> None:
        item, pass_on = queued
        pass_on(list(self._pictures(item)))

    def _pictures(self, item: EncodedFrame | End) -> Iterator[StreamItem]:
        """The result of decoding an item; an error follows the pictures before it."""
        error = item.error if isinstance(item, End) else None
        try:
            if isinstance(item, EncodedFrame):
                yield from self._decoder.decode(item)
            else:
                yield from self._decoder.flush()
        except Exception as fault:  # noqa: BLE001
            yield End(error or fault)
        else:
            if isinstance(item, End):
                yield item

    def _detect(self, take: Callable[[], StreamItem]) -> None:
        answers: Sequence[Answer | End]
        try:
            item = take()
            if isinstance(item, EncodedFrame):
                item = self._decoder.decode_still(item)
            if isinstance(item, End):
                answers = self._last_answers(item)
            elif isinstance(item, SkippedFrame):
                answers = self._follower.skip(item)
            else:
                answers = self._answers(item)
        except Exception as error:  # noqa: BLE001
            answers = self._last_answers(End(error))
        self.call_in_loop(self._on_answers, answers)

    def _answers(self, frame: DecodedFrame) -> Sequence[Answer]:
        self._metrics.decode_seconds.observe(frame.decode_seconds)
        return self._follower.follow(frame, self._options)

    def _last_answers(self, end: End) -> Sequence[Answer | End]:
        """The answers that are due before the end, and the end."""
        try:
            return [*self._follower.finish(self._options), end]
        except Exception as error:  # noqa: BLE001
            return [End(end.error or error)]
