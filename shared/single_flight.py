"""Work that several callers ask for at once is done once."""

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
    """Work that several wait for. Subclasses add what the waiters may see of it.

    Attributes:
        task: the work itself, set by whoever makes it.
        waiting: how many wait for it.
    """

    task: asyncio.Task[T]

    def __init__(self) -> None:
        self.waiting = 0
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Waits for the next `announce`, which also comes at the end."""
        await self._changed.wait()

    def announce(self) -> None:
        """Wakes all who wait in `changed`."""
        self._changed.set()
        self._changed = asyncio.Event()

    def result(self) -> T:
        """What came of the finished work.

        Raises:
            CallCancelledError: somebody has stopped it.
            Whatever the work raised.
        """
        if self.task.cancelled():
            raise CallCancelledError("the work was stopped by another call")
        return self.task.result()

    async def finished(self) -> T:
        """Waits for the end and returns or raises as `result`."""
        await asyncio.wait((self.task,))
        return self.result()


W = TypeVar("W", bound=SharedWork[Any])


class SingleFlight(Generic[K, W]):
    """The work under way, one for each key."""

    def __init__(self) -> None:
        self._flights: dict[K, W] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def get(self, key: K) -> W | None:
        """The work under way for a key."""
        return self._flights.get(key)

    @contextmanager
    def join(self, key: K, start: Callable[[], W]) -> Iterator[W]:
        """The work of a key, started unless it is under way; cancelled when the last one leaves."""
        work = self._flights.get(key)
        if work is None:
            work = self._flights[key] = start()
            self._tasks.add(work.task)
            work.task.add_done_callback(partial(self._ended, key, work))
        work.waiting += 1
        try:
            yield work
        finally:
            work.waiting -= 1
            if not work.waiting and not work.task.done():
                self.stop(key, work)

    def stop(self, key: K, work: W) -> None:
        """Cancels work; who asks for its key from now on begins anew."""
        work.task.cancel()
        self._forget(key, work)

    async def close(self) -> None:
        """Cancels all work and waits for its end."""
        for task in self._tasks:
            if not task.cancelling():  # a second time would break into its cleaning up
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, key: K, work: W, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._forget(key, work)
        work.announce()
        if not task.cancelled():
            task.exception()  # the waiters raise it; with none left it is nobody's

    def _forget(self, key: K, work: W) -> None:
        if self._flights.get(key) is work:
            del self._flights[key]
