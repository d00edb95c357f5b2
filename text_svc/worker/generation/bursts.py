"""Prompts of callers that ask at the same moment begin in the same step of the engine.

A step that has begun cannot take further prompts in. An engine that is idle would begin with the
first prompt of a burst alone, and all others would wait for that step, and be prepared while it
computes on every core. So while the engine is idle, a prompt that is ready waits for those that are
being prepared, for some milliseconds at most. A lone caller never waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

# A fraction of the step that reads a few prompts, which those that come too late wait for.
LONGEST_SECONDS = 0.02


class Bursts:
    """The prompts of one model that are being prepared, and whether the engine is idle.

    For the event loop.
    """

    def __init__(self) -> None:
        self._preparing = 0
        self._running = 0
        self._begin: asyncio.Event | None = None

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Marks a prompt that is being prepared, as by its chat template."""
        self._preparing += 1
        try:
            yield
        finally:
            self._preparing -= 1
            if not self._preparing:
                self._release()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Marks a generation that the engine has."""
        self._running += 1
        self._release()
        try:
            yield
        finally:
            self._running -= 1

    async def together(self) -> None:
        """Waits until a prompt that is ready should begin."""
        if self._running or not self._preparing:
            return
        if self._begin is None:
            self._begin = asyncio.Event()
            asyncio.get_running_loop().call_later(LONGEST_SECONDS, self._begin.set)
        await self._begin.wait()

    def _release(self) -> None:
        if self._begin:
            self._begin.set()
            self._begin = None
