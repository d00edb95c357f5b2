"""Runs the items of one stream in the threads of a pool, in order, without the event loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

T = TypeVar("T")


class SerialExecutor(Generic[T]):
    """Runs a function on one item after the other, each in any free thread of a pool.

    Executors that share a pool take turns after each item.

    Args:
        pool: the threads.
        run: called with each item; it must not raise.
        on_hung: called with the pool's error if an item does not come to its end.
    """

    def __init__(
        self,
        pool: Executor,
        run: Callable[[T], None],
        on_hung: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self._pool = pool
        self._run = run
        self._on_hung = on_hung
        self._items: deque[T] = deque()
        self._busy = False
        self._closed = False
        self._lock = threading.Lock()

    @property
    def idle(self) -> bool:
        """Whether every item has been processed."""
        return not self._busy

    def put(self, item: T) -> None:
        """Queues an item, without blocking. A closed executor drops it."""
        with self._lock:
            if self._closed:
                return
            self._items.append(item)
            if self._busy:
                return
            self._busy = True
        self._submit()

    def close(self) -> None:
        """Drops the items that have not started, and all later ones."""
        with self._lock:
            self._closed = True
            self._items.clear()

    def _run_next(self) -> None:
        with self._lock:
            item = self._items.popleft() if self._items else None
        if item is not None:
            self._run(item)
        with self._lock:
            if not self._items:
                self._busy = False
                return
        self._submit()

    def _submit(self) -> None:
        self._pool.submit(self._run_next).add_done_callback(self._on_done)

    def _on_done(self, future: Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()):
            self._on_hung(error)
