"""The frame policy "latest": a frame that still waits for the task is replaced by a newer one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from vision_svc.frames.decoder import is_video
from vision_svc.frames.types import EncodedFrame, SkippedFrame
from vision_svc.streams.policy import FramePolicy
from vision_svc.streams.stages import End

if TYPE_CHECKING:
    from collections.abc import Callable

    from vision_svc.streams.stages import Stages, StreamItem

T = TypeVar("T")

# Video frames that are not decoded yet.
MAX_UNDECODED = 2
# Answers that the client has not taken; with that many, the task waits.
MAX_UNTAKEN = 2


class LatestFrame(FramePolicy):
    """Runs one frame at a time, always the newest; those that it has replaced are dropped.

    Video frames are all decoded, since later frames need the earlier ones. Other frames are
    decoded only once they run.
    """

    def __init__(self, stages: Stages, on_drop: Callable[[], None]) -> None:
        super().__init__(stages, on_drop)
        self._slot: LatestSlot[StreamItem] = LatestSlot()
        self._undecoded = 0
        self._untaken = 0
        self._running = False
        self._has_video = False

    def has_room(self) -> bool:
        return self._undecoded < MAX_UNDECODED

    def put(self, item: EncodedFrame | End) -> None:
        # Once a stream has had video, the items after it must not overtake it in the decoder.
        self._has_video |= isinstance(item, EncodedFrame) and is_video(item.format)
        if self._has_video:
            self._undecoded += 1
            self._stages.decode(item, self._pass_on)
        else:
            self._offer(item)

    def answer_ready(self, count: int = 1) -> None:
        self._running = False
        self._untaken += count
        self._pump()

    def answer_taken(self) -> None:
        self._untaken -= 1
        self._pump()

    def _pass_on(self, items: list[StreamItem]) -> None:
        """Takes what was decoded back to the event loop, from the decoding thread."""
        self._stages.call_in_loop(self._decoded, items)

    def _decoded(self, items: list[StreamItem]) -> None:
        self._undecoded -= 1
        for item in items:
            self._offer(item)
        self._pump()

    def _offer(self, item: StreamItem) -> None:
        if isinstance(item, End):
            self._slot.put_end(item)
        elif isinstance(item, SkippedFrame) and self._slot:
            self._on_drop()  # the picture that waits is worth more
        elif self._slot.put(item):
            self._on_drop()
        self._pump()

    def _pump(self) -> None:
        if self._slot and not self._running and self._untaken < MAX_UNTAKEN:
            self._running = True
            self._stages.detect(self._slot.take)
        super()._pump()


class LatestSlot(Generic[T]):
    """Holds the newest item until it is taken, and after it the end. Safe to share between threads.

    An item is taken when it begins to run, not when its turn is requested: until a core is free, a
    newer one may replace it.
    """

    def __init__(self) -> None:
        self._item: T | None = None
        self._end: T | None = None
        self._ended = False
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there is anything to take."""
        return self._item is not None or self._end is not None

    def put(self, item: T) -> bool:
        """Puts an item; True if it has replaced one. After the end, items are ignored."""
        with self._lock:
            if self._ended:
                return False
            replaced, self._item = self._item is not None, item
            return replaced

    def put_end(self, end: T) -> None:
        """Puts what follows the item that waits now. Only the first end counts."""
        with self._lock:
            if not self._ended:
                self._ended, self._end = True, end

    def take(self) -> T:
        """Takes the item, or the end if there is no item.

        Raises:
            LookupError: the slot is empty.
        """
        with self._lock:
            item, self._item = self._item, None
            if item is None:
                item, self._end = self._end, None
        if item is None:
            raise LookupError("the slot is empty")
        return item
