"""Queues in which callers take turns."""

from __future__ import annotations

import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A queue from which the caller with the fewest running items is served next.

    Among equals it is the one whose last start is longest ago. One caller's items keep their order.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: dict[str, deque[tuple[int, T]]] = {}
        self._running: Counter[str] = Counter()
        # Of callers with something that waits or runs.
        self._last_start: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._count

    def add(self, caller: str, item: T) -> None:
        """Puts an item at the end of its caller's."""
        self._waiting.setdefault(caller, deque()).append((next(self._numbers), item))
        self._count += 1

    def remove(self, caller: str, item: T) -> bool:
        """Takes an item out of the queue; False if it does not wait."""
        for entry in self._waiting.get(caller, ()):
            if entry[1] is item:
                self._take(caller, entry)
                return True
        return False

    def first(self) -> T | None:
        """What comes next; None if nothing waits."""
        return self._waiting[caller][0][1] if (caller := self._next()) is not None else None

    def start(self) -> tuple[str, T] | None:
        """Takes what comes next: it runs until `ended`. None if nothing waits."""
        caller = self._next()
        if caller is None:
            return None
        entry = self._waiting[caller][0]
        self._take(caller, entry)
        self._running[caller] += 1
        self._last_start[caller] = next(self._numbers)
        return caller, entry[1]

    def ended(self, caller: str) -> None:
        """Notes that one of a caller's has ended."""
        self._running[caller] -= 1
        self._forget(caller)

    def _next(self) -> str | None:
        if not self._waiting:
            return None
        return min(self._waiting, key=self._rank)

    def _rank(self, caller: str) -> tuple[int, int, int]:
        arrival = self._waiting[caller][0][0]
        return self._running[caller], self._last_start.get(caller, -1), arrival

    def _take(self, caller: str, entry: tuple[int, T]) -> None:
        waiting = self._waiting[caller]
        waiting.remove(entry)
        self._count -= 1
        if not waiting:
            del self._waiting[caller]
            self._forget(caller)

    def _forget(self, caller: str) -> None:
        if not self._running[caller]:
            del self._running[caller]
            if caller not in self._waiting:
                self._last_start.pop(caller, None)


class TurnThreads:
    """Threads in which the work of callers runs in turns. Safe to use from any thread.

    Args:
        threads: how many.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._lock = threading.Lock()
        self._turns: Turns[tuple[Future[object], Callable[[], object]]] = Turns()

    def submit(self, caller: str, work: Callable[[], T]) -> Future[T]:
        """Runs `work` once it is its caller's turn."""
        future: Future[T] = Future()
        with self._lock:
            self._turns.add(caller, (future, work))  # type: ignore[arg-type]
        self._pool.submit(self._run)
        return future

    def shutdown(self) -> None:
        """Waits for the work that has not been cancelled, and ends the threads."""
        self._pool.shutdown()

    def _run(self) -> None:
        with self._lock:
            started = self._turns.start()
        assert started is not None, "there is a piece of work for each run"
        caller, (future, work) = started
        try:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001  # the caller raises it
                future.set_exception(error)
            else:
                future.set_result(result)
        finally:
            with self._lock:
                self._turns.ended(caller)
