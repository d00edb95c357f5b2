"""Queues in which callers take turns."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from shared.caller import Weights

T = TypeVar("T")

# Callers who have left, of whom it is remembered what they have been served.
MAX_REMEMBERED = 1024


class Served:
    """How much each caller has been served, while others compete with it, by its weight.

    This is start-time fair queueing (Goyal, Vin, Cheng 1996): who comes anew begins where the one
    of the others is that has been served least, so nobody saves up for later. What a caller had
    beyond that is remembered after it has left, so that leaving gains nothing.

    Args:
        weights: of callers.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._served: dict[str, float] = {}
        self._left: dict[str, float] = {}
        self._floor = 0.0

    def __len__(self) -> int:
        """How many callers compete."""
        return len(self._served)

    def of(self, caller: str) -> float:
        """What one of the callers that compete has been served, by its weight."""
        return self._served[caller]

    def weight(self, caller: str) -> float:
        """See `Weights`."""
        return self._weights.get(caller, 1.0)

    def join(self, caller: str) -> None:
        """Notes that a caller competes; nothing if it does already."""
        if caller in self._served:
            return
        self._floor = max(self._floor, min(self._served.values(), default=0.0))
        self._served[caller] = max(self._floor, self._left.pop(caller, 0.0))

    def charge(self, caller: str, cost: float) -> None:
        """Notes what a caller that competes has been served."""
        self._served[caller] += cost / self.weight(caller)

    def leave(self, caller: str) -> None:
        """Notes that a caller has nothing that waits or runs."""
        served = self._served.pop(caller)
        if not self._served:
            self._left.clear()
            self._floor = 0.0
            return
        if len(self._left) >= MAX_REMEMBERED:
            self._left = {name: had for name, had in self._left.items() if had > self._floor}
            if len(self._left) >= MAX_REMEMBERED:
                del self._left[next(iter(self._left))]
        self._left[caller] = served


@dataclass
class _Caller(Generic[T]):
    """What a caller has waiting, by priority and arrival, and how much of it runs.

    Attributes:
        last_start: number of its last start.
    """

    waiting: dict[int, OrderedDict[int, tuple[int, T]]] = field(default_factory=dict)
    running: int = 0
    last_start: int = -1

    def add(self, item: T, priority: int, arrival: int) -> None:
        self.waiting.setdefault(priority, OrderedDict())[id(item)] = arrival, item

    def remove(self, item: T) -> bool:
        for priority, line in self.waiting.items():
            if line.pop(id(item), None):
                if not line:
                    del self.waiting[priority]
                return True
        return False

    def first(self) -> tuple[int, T]:
        """What comes next, with its arrival."""
        return next(iter(self.waiting[max(self.waiting)].values()))


class Turns(Generic[T]):
    """A queue from which the caller with the fewest running items, by its weight, is served next.

    Among equals it is the one that has been served least, as `Served` says, and then the one whose
    last start is longest ago. Of one caller's items those of the highest priority come first, in
    the order of their arrival.

    Args:
        weights: of callers.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        self._numbers = itertools.count()
        self._callers: dict[str, _Caller[T]] = {}
        self._waiting: dict[str, _Caller[T]] = {}
        self._served = Served(weights or {})
        self._count = 0
        self._choice: str | None = None  # who is next, until something changes

    def __len__(self) -> int:
        """How many wait."""
        return self._count

    @property
    def callers(self) -> int:
        """How many callers have something that waits."""
        return len(self._waiting)

    def running(self, caller: str) -> int:
        """How many of a caller's run."""
        return self._callers[caller].running if caller in self._callers else 0

    def add(self, caller: str, item: T, priority: int = 0) -> None:
        """Puts an item into its caller's, after those of the same priority."""
        one = self._callers.get(caller)
        if one is None:
            one = self._callers[caller] = _Caller()
            self._served.join(caller)
        one.add(item, priority, next(self._numbers))
        self._waiting[caller] = one
        self._count += 1
        self._choice = None

    def remove(self, caller: str, item: T) -> bool:
        """Takes an item out of the queue; False if it does not wait."""
        one = self._waiting.get(caller)
        if one is None or not one.remove(item):
            return False
        self._removed(caller, one)
        return True

    def first(self) -> T | None:
        """What comes next; None if nothing waits."""
        caller = self._next()
        return None if caller is None else self._waiting[caller].first()[1]

    def start(self) -> tuple[str, T] | None:
        """Takes what comes next: it runs until `ended`. None if nothing waits."""
        caller = self._next()
        if caller is None:
            return None
        one = self._waiting[caller]
        item = one.first()[1]
        one.remove(item)
        one.running += 1
        one.last_start = next(self._numbers)
        self._removed(caller, one)
        return caller, item

    def ended(self, caller: str, cost: float = 1.0) -> None:
        """Notes that one of a caller's has ended, and what it has cost."""
        one = self._callers[caller]
        one.running -= 1
        self._served.charge(caller, cost)
        self._choice = None
        self._forget(caller, one)

    def _next(self) -> str | None:
        if self._choice is None and self._waiting:
            self._choice = min(self._waiting, key=self._rank)
        return self._choice

    def _rank(self, caller: str) -> tuple[float, float, int, int]:
        one = self._waiting[caller]
        running = one.running / self._served.weight(caller)
        return running, self._served.of(caller), one.last_start, one.first()[0]

    def _removed(self, caller: str, one: _Caller[T]) -> None:
        self._count -= 1
        self._choice = None
        if not one.waiting:
            del self._waiting[caller]
            self._forget(caller, one)

    def _forget(self, caller: str, one: _Caller[T]) -> None:
        if not one.running and not one.waiting:
            del self._callers[caller]
            self._served.leave(caller)


class TurnLock:
    """A lock that callers take in turns. For one event loop.

    What a caller has been served is the time that it has held the lock.

    Args:
        weights: of callers.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        self._turns: Turns[asyncio.Future[None]] = Turns(weights)
        self._held = False

    async def acquire(self, caller: str, priority: int = 0) -> Callable[[], None]:
        """Waits for a caller's turn. One that is cancelled meanwhile leaves at once.

        Returns:
            Releases the lock; to be called once.
        """
        turn = asyncio.get_running_loop().create_future()
        self._turns.add(caller, turn, priority)
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if not self._turns.remove(caller, turn):  # its turn had come
                self._release(caller, time.monotonic())
            raise
        return partial(self._release, caller, time.monotonic())

    def _release(self, caller: str, begun: float) -> None:
        self._held = False
        self._turns.ended(caller, time.monotonic() - begun)
        self._next()

    def _next(self) -> None:
        if not self._held and (started := self._turns.start()):
            self._held = True
            if not started[1].done():  # else it is cancelled, and gives its turn on
                started[1].set_result(None)


class TurnThreads:
    """Threads in which the work of callers runs in turns. Safe to use from any thread.

    What a caller has been served is the time that its work has taken.

    Args:
        threads: how many.
        name: of the threads.
        weights: of callers.
    """

    def __init__(self, threads: int, name: str, weights: Weights | None = None) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._lock = threading.Lock()
        self._turns: Turns[_Work[Any]] = Turns(weights)

    @property
    def callers(self) -> int:
        """How many callers have work that waits."""
        return self._turns.callers

    def submit(self, caller: str, work: Callable[[], T], priority: int = 0) -> Future[T]:
        """Runs `work` once it is its caller's turn. If its future is cancelled, it never runs."""
        item = _Work(work)
        with self._lock:
            self._turns.add(caller, item, priority)
        # A future keeps its callbacks: this one must not hold what the work holds.
        item.future.add_done_callback(partial(self._drop, caller, weakref.ref(item)))
        self._pool.submit(self._run)
        return item.future

    def shutdown(self) -> None:
        """Waits for the work that has not been cancelled, and ends the threads."""
        self._pool.shutdown()

    def _drop(self, caller: str, ref: weakref.ref[_Work[Any]], _: Future[Any]) -> None:
        """Takes work that was cancelled out of the queue."""
        item = ref()
        if item is None:
            return
        with self._lock:
            self._turns.remove(caller, item)

    def _run(self) -> None:
        with self._lock:
            started = self._turns.start()
        if started is None:
            return  # what it was for has been cancelled
        caller, item = started
        begun = time.monotonic()
        try:
            if not item.future.set_running_or_notify_cancel():
                return
            try:
                result = item.work()
            except BaseException as error:  # noqa: BLE001  # the caller raises it
                item.future.set_exception(error)
            else:
                item.future.set_result(result)
        finally:
            del started, item  # an error has this frame, and must not hold its own future
            with self._lock:
                self._turns.ended(caller, time.monotonic() - begun)


class _Work(Generic[T]):
    """Work that waits for its turn, or runs, and its future."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.future: Future[T] = Future()
