"""Places that callers share, so that one of them never keeps the others out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import QueueFullError, ServiceError


@dataclass(eq=False)
class Place:
    """A place that is taken; see `Places.take`."""

    caller: str
    leave: Callable[[ServiceError], bool]


class Places:
    """A number of places for calls or streams.

    A caller may take every place while nobody else asks. When all are taken and a caller asks that
    has less than half of them, one that has more than half leaves the newest place that it can.

    Args:
        limit: how many places there are.
        full: the message of those that find no place; it gives the limit.
        name: of the limit, in an error's metadata.
    """

    def __init__(self, limit: int, full: str, name: str = "limit") -> None:
        self.limit = limit
        self.half = max(1, limit // 2)
        self.taken = 0
        self._full = full
        self._metadata = {name: str(limit)}
        self._held: dict[str, list[Place]] = {}

    def take(self, caller: str, leave: Callable[[ServiceError], bool]) -> Place:
        """Takes a place, until `free`.

        Args:
            caller: who asks.
            leave: ends what has the place with an error, and returns True; or False if it cannot
                end. The place is free after it.

        Raises:
            QueueFullError: all places are taken, and none can be made free.
        """
        if self.taken >= self.limit and not self._make_room(caller):
            raise QueueFullError(self._full, metadata=self._metadata)
        place = Place(caller, leave)
        self._held.setdefault(caller, []).append(place)
        self.taken += 1
        return place

    def free(self, place: Place) -> None:
        """Frees a place; does nothing if it is free already."""
        held = self._held.get(place.caller, [])
        if place in held:
            held.remove(place)
            self.taken -= 1
            if not held:
                del self._held[place.caller]

    def _make_room(self, caller: str) -> bool:
        if len(self._held.get(caller, ())) >= self.half:
            return False
        return any(
            self._leaves(place)
            for held in list(self._held.values())
            if len(held) > self.half
            for place in reversed(held)
        )

    def _leaves(self, place: Place) -> bool:
        error = QueueFullError(
            f"{self._full}; another caller has asked, and this one has more than its half, "
            f"{self.half} of {self.limit}",
            metadata=self._metadata,
        )
        if not place.leave(error):
            return False
        self.free(place)
        return True
