"""Stages that only record what a frame policy asks of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vision_svc.frames.types import EncodedFrame
from vision_svc.streams.stages import End, StreamItem

T = TypeVar("T")


def frame(number: int, format_name: str = "jpeg") -> EncodedFrame:
    return EncodedFrame(b"1", format_name, number=number, position=number + 1)


class FakeStages:
    """Stands for the threads: the test says when an item is decoded and when a turn comes."""

    def __init__(self) -> None:
        self.decoding: list[tuple[EncodedFrame | End, Callable[[list[StreamItem]], None]]] = []
        self.turns: list[Callable[[], StreamItem]] = []

    def decode(self, item: EncodedFrame | End, pass_on: Callable[[list[StreamItem]], None]) -> None:
        self.decoding.append((item, pass_on))

    def detect(self, take: Callable[[], StreamItem]) -> None:
        self.turns.append(take)

    def can_skip_decoding(self, item: EncodedFrame) -> bool:
        return not self.decoding and item.format == "rgb"

    def call_in_loop(self, function: Callable[[T], None], argument: T) -> None:
        function(argument)

    def decoded(self, *items: StreamItem) -> None:
        """Ends the decoding of the oldest item with this result."""
        _, pass_on = self.decoding.pop(0)
        pass_on(list(items))

    def next_turn(self) -> StreamItem:
        """What runs when the oldest turn comes."""
        return self.turns.pop(0)()
