"""Threads that are watched: work that does not end is noticed, and its caller is told."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _Work:
    """Work that a thread has begun.

    Its time is counted in looks, not read from a clock: a machine that was asleep has lost none.
    """

    def __init__(self) -> None:
        self.looks = 0
        # Of a thread's work; its error has the frame of `run`, and must not hold its own future.
        self.future: weakref.ref[Future[Any]] | None = None


class WatchedPool(ThreadPoolExecutor):
    """A pool of threads. `look` is to be called from time to time, at equal intervals."""

    def __init__(
        self, threads: int, name: str, initializer: Callable[[], object] | None = None
    ) -> None:
        super().__init__(threads, name, initializer)
        self._begun: set[_Work] = set()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        work = _Work()

        def run() -> T:
            self._begun.add(work)
            try:
                return fn(*args, **kwargs)
            finally:
                self._begun.discard(work)

        future = super().submit(run)
        work.future = weakref.ref(future)
        return future

    def look(self, most: int, error: Callable[[], Exception]) -> int:
        """Fails the futures of work that has been seen `most` times; returns how many there are.

        The thread of such work is lost, even if its work should end after all.
        """
        hung = 0
        for work in tuple(self._begun):
            work.looks += 1
            if work.looks == most and work.future and (future := work.future()):
                hung += 1
                with contextlib.suppress(InvalidStateError):  # it has ended in this moment
                    future.set_exception(error())
        return hung
