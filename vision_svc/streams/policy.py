"""The contract of the frame policies: how many frames of a stream are in flight, and which."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vision_svc.frames.types import EncodedFrame
    from vision_svc.streams.stages import End, Stages


class FramePolicy(ABC):
    """Decides when a frame of a stream starts, and whether a newer one replaces it.

    Its methods are for the event loop.

    Args:
        stages: where frames are decoded and run.
        on_drop: called for each frame that a newer one has replaced.
    """

    def __init__(self, stages: Stages, on_drop: Callable[[], None]) -> None:
        self._stages = stages
        self._on_drop = on_drop
        self._room = asyncio.Event()

    async def room(self) -> None:
        """Waits until there is room for another item."""
        while not self.has_room():
            self._room.clear()
            await self._room.wait()

    @abstractmethod
    def has_room(self) -> bool:
        """Whether `put` may be called."""

    @abstractmethod
    def put(self, item: EncodedFrame | End) -> None:
        """Takes the stream's next frame, or its end."""

    @abstractmethod
    def answer_ready(self, count: int = 1) -> None:
        """Called when an item has passed the task; the answers that wait for the client now.

        Args:
            count: how many answers the item has completed: more or fewer than one if the task
                holds answers back.
        """

    @abstractmethod
    def answer_taken(self) -> None:
        """Called when the client takes an answer."""

    def _pump(self) -> None:
        """Uses the room that has become free."""
        if self.has_room():
            self._room.set()
