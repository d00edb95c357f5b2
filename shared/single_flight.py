"""Work that several callers request at the same time is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

from shared.errors import CallCancelledError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class SharedWork(Generic[T]):
    """Work that several callers wait for. Subclasses add what the callers can see of it.

    Attributes:
        task: the work itself; set by its creator.
        waiting: number of callers.
        goes_on: whether it goes on when the last of them leaves.
    """

    task: asyncio.Task[T]

    def __init__(self) -> None:
        self.waiting = 0
        self.goes_on = False
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Waits for the next `announce`, which also follows the end of the task."""
        await self._changed.wait()

    def announce(self) -> None:
        """Wakes all callers that wait in `changed`."""
        self._changed.set()
        self._changed = asyncio.Event()

    def result(self) -> T:
        """The result of the finished work.

        Raises:
            CallCancelledError: it was cancelled.
            Exception: what the work raised.
        """
        if self.task.cancelled():
            raise CallCancelledError("the work was stopped by another call")
        return self.task.result()

    async def finished(self) -> T:
        """Waits for the end, then returns or raises like `result`."""
        await asyncio.wait((self.task,))
        return self.result()


W = TypeVar("W", bound=SharedWork[Any])


class SingleFlight(Generic[K, W]):
    """Work in flight, at most one for each key."""

    def __init__(self) -> None:
        self._flights: dict[K, W] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def get(self, key: K) -> W | None:
        """The work in flight for a key."""
        return self._flights.get(key)

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[W]:
        return iter(list(self._flights.values()))

    @contextmanager
    def join(self, key: K, start: Callable[[], W], *, goes_on: bool = False) -> Iterator[W]:
        """Joins the work for a key, or starts it; what has just ended was for those before.

        It is cancelled when its last caller leaves, unless one of them has said that it `goes_on`.
        """
        work = self._flights.get(key)
        if work is None or work.task.done():
            work = self._flights[key] = start()
            self._tasks.add(work.task)
            work.task.add_done_callback(partial(self._ended, key, work))
        work.waiting += 1
        work.goes_on |= goes_on
        try:
            yield work
        finally:
            work.waiting -= 1
            if not work.waiting and not work.goes_on and not work.task.done():
                self.stop(key, work)

    def stop(self, key: K, work: W) -> None:
        """Cancels work; the next `join` of its key starts anew."""
        work.task.cancel()
        self._forget(key, work)

    async def close(self) -> None:
        """Cancels all work and waits until it has ended."""
        for task in self._tasks:
            if not task.cancelling():  # a second cancellation would interrupt its cleanup
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, key: K, work: W, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._forget(key, work)
        work.announce()
        if not task.cancelled():
            task.exception()  # callers raise it; without any left it counts as seen

    def _forget(self, key: K, work: W) -> None:
        if self._flights.get(key) is work:
            del self._flights[key]
