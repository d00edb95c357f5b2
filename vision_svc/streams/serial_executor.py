"""Work of one stream in worker threads, in order, with no event loop between two steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Lane(Generic[T]):
    """Runs a function on items one after the other, each in whatever thread of a pool is free.

    Lanes that share a pool take turns, an item each.

    Args:
        pool: where it runs.
        run: what is done with an item; it must not raise.
    """

    def __init__(self, pool: Executor, run: Callable[[T], None]) -> None:
        self._pool = pool
        self._run = run
        self._items: deque[T] = deque()
        self._busy = False
        self._closed = False
        self._lock = threading.Lock()

    @property
    def idle(self) -> bool:
        """Whether all that was put is done."""
        return not self._busy

    def put(self, item: T) -> None:
        """Does not block. A closed lane drops the item."""
        with self._lock:
            if self._closed:
                return
            self._items.append(item)
            if self._busy:
                return
            self._busy = True
        self._pool.submit(self._turn)

    def close(self) -> None:
        """Drops what has not begun, and all that comes."""
        with self._lock:
            self._closed = True
            self._items.clear()

    def _turn(self) -> None:
        with self._lock:
            item = self._items.popleft() if self._items else None
        if item is not None:
            self._run(item)
        with self._lock:
            if not self._items:
                self._busy = False
                return
        self._pool.submit(self._turn)


def name_thread(name: str) -> None:
    """Gives the calling thread a name that the system's tools show (Linux)."""
    comm = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
    if comm.exists():
        comm.write_text(name[:15])
