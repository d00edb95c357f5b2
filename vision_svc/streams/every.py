"""The frame policy "every": each frame is answered, and a slow client or task slows the sender."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_svc.frames.types import EncodedFrame
from vision_svc.streams.policy import FramePolicy

if TYPE_CHECKING:
    from vision_svc.streams.stages import End, StreamItem

# Frames between the reader and the client: being decoded, waiting, running, answered.
MAX_IN_FLIGHT = 4


class EveryFrame(FramePolicy):
    """Answers all frames, in order, with at most `MAX_IN_FLIGHT` of them in flight."""

    _in_flight = 0

    def has_room(self) -> bool:
        return self._in_flight < MAX_IN_FLIGHT

    def put(self, item: EncodedFrame | End) -> None:
        self._in_flight += 1
        if isinstance(item, EncodedFrame) and self._stages.can_skip_decoding(item):
            self._detect(item)
        else:
            self._stages.decode(item, self._pass_on)

    def answer_ready(self, count: int = 1) -> None:
        # An answer stays in flight until the client takes it.
        self._add_in_flight(count - 1)

    def answer_taken(self) -> None:
        self._in_flight -= 1
        self._pump()

    def _pass_on(self, items: list[StreamItem]) -> None:
        """Takes what was decoded to the task, in the decoding thread."""
        for item in items:
            self._detect(item)
        # A video frame may complete no picture, or several.
        if len(items) != 1:
            self._stages.call_in_loop(self._add_in_flight, len(items) - 1)

    def _detect(self, item: StreamItem) -> None:
        self._stages.detect(lambda: item)

    def _add_in_flight(self, more: int) -> None:
        self._in_flight += more
        self._pump()
