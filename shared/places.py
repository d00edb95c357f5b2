"""Places that callers share, so that one of them never keeps the others out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shared.caller import Weights
from shared.errors import QueueFullError, ServiceError


@dataclass(eq=False)
class Place:
    """A place that is taken; see `Places.take`."""

    caller: str
    leave: Callable[[ServiceError], bool]


def shares(limit: int, callers: Iterable[str], weights: Weights) -> dict[str, int]:
    """What each of some callers gets of a number, by its weight, and at least 1."""
    weight = {name: weights.get(name, 1.0) for name in callers}
    every = sum(weight.values())
    return {name: max(1, int(limit * each / every)) for name, each in weight.items()}


class Places:
    """A number of places for calls or streams.

    A caller may take every place while nobody else asks. When all are taken and a caller asks that
    has less than its share of them, one that has more than its own leaves the newest place that it
    can; of several, the one that is furthest beyond.

    Args:
        limit: how many places there are.
        full: the message of those that find no place; it gives the limit.
        name: of the limit, in an error's metadata.
        weights: of callers, for what only waits. Then a share is an equal part for each caller
            that has a place or asks for one, times its weight. None is for what would be cut off
            while it runs: the share of each is half, however many there are.
    """

    def __init__(
        self, limit: int, full: str, name: str = "limit", weights: Weights | None = None
    ) -> None:
        self.limit = limit
        self.taken = 0
        self._weights = weights
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
        shares = self._shares({caller, *self._held})
        if len(self._held.get(caller, ())) >= shares[caller]:
            return False
        beyond = {name: len(held) - shares[name] for name, held in self._held.items()}
        return any(
            self._leaves(place, shares[name])
            for name in sorted(beyond, key=beyond.__getitem__, reverse=True)
            if beyond[name] > 0
            for place in reversed(self._held[name])
        )

    def _shares(self, callers: set[str]) -> dict[str, int]:
        """How many places each of the callers may keep when all are taken."""
        if self._weights is None:
            return dict.fromkeys(callers, max(1, self.limit // 2))
        return shares(self.limit, callers, self._weights)

    def _leaves(self, place: Place, share: int) -> bool:
        part = "half" if self._weights is None else "share"
        error = QueueFullError(
            f"{self._full}; another caller has asked, and this one has more than its {part}, "
            f"{share} of {self.limit}",
            metadata=self._metadata,
        )
        if not place.leave(error):
            return False
        self.free(place)
        return True
