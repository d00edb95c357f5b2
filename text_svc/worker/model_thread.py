"""The thread of a model, and the queue in front of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shared.errors import QueueFullError
from text_svc.worker.steps import Steps

Result = TypeVar("Result")


class CancelEvent(threading.Event):
    """Set when the caller has gone. The work looks at it between two steps, which are counted."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self._steps = steps

    def is_set(self) -> bool:
        self._steps.done()
        return super().is_set()


class ModelThread:
    """One thread, in which a model's calls run one at a time.

    Args:
        max_waiting: calls that may wait; one more is refused.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._active = 0
        self._steps = Steps()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="infer")

    async def run(self, work: Callable[[threading.Event], Result]) -> Result:
        """Runs `work` with an event that is set when its caller has gone.

        Raises:
            QueueFullError: too many calls wait already.
        """
        if self._active > self._max_waiting:
            raise QueueFullError(f"one call runs and {self._max_waiting} wait, which is the limit")
        cancelled = CancelEvent(self._steps)
        loop = asyncio.get_running_loop()
        self._active += 1
        self._steps.expect(self._active)
        future = self._pool.submit(work, cancelled)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._on_done))
        try:
            return await asyncio.wrap_future(future)
        finally:
            cancelled.set()

    def _on_done(self) -> None:
        self._active -= 1
        self._steps.done()
        self._steps.expect(self._active)
