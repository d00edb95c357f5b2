"""What waits for the task under the policy "latest": one frame at most, and then the end."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Newest(Generic[T]):
    """Holds the newest item until it is taken, and after it the end. Threads may share it.

    A frame is taken when it begins to run, not when its turn is asked for: until a core is free
    newer ones may come.
    """

    def __init__(self) -> None:
        self._item: T | None = None
        self._end: T | None = None
        self._ended = False
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there is anything to take."""
        return self._item is not None or self._end is not None

    def put(self, item: T) -> bool:
        """Returns whether an item that still waited has been replaced. After the end it is lost."""
        with self._lock:
            if self._ended:
                return False
            replaced, self._item = self._item is not None, item
            return replaced

    def put_end(self, end: T) -> None:
        """What comes after the item that waits now; the first end counts."""
        with self._lock:
            if not self._ended:
                self._ended, self._end = True, end

    def take(self) -> T:
        """The item, and when there is none the end.

        Raises:
            LookupError: nothing waits.
        """
        with self._lock:
            item, self._item = self._item, None
            if item is None:
                item, self._end = self._end, None
        if item is None:
            raise LookupError("nothing waits")
        return item
