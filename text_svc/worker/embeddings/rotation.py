"""Whose text is embedded next: callers take turns, and so do the calls of one caller."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import Generic, Protocol, TypeVar

from shared.caller import Weights
from shared.turns import Served

# Old places in the order, besides as many as there are callers, that are not worth a tidying.
MAX_OLD = 64


class Waiting(Protocol):
    """A call with texts that wait.

    Attributes:
        caller: whose it is.
        priority: among its caller's calls.
    """

    caller: str
    priority: int


C = TypeVar("C", bound=Waiting)


class Rotation(Generic[C]):
    """Calls with texts that wait. Whoever has been served the fewest tokens, by weight, is next.

    Of one caller's calls those of the highest priority take turns.

    Args:
        weights: of callers.
    """

    def __init__(self, weights: Weights) -> None:
        self._numbers = itertools.count()
        self._served = Served(weights)
        self._calls: dict[str, dict[int, deque[C]]] = {}
        # What each caller has been served, a number, and its name; with other numbers, old ones.
        self._order: list[tuple[float, int, str]] = []
        self._number: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many calls wait."""
        return self._count

    @property
    def callers(self) -> int:
        """How many callers have a call that waits."""
        return len(self._calls)

    def add(self, call: C) -> None:
        """Puts a call at the end of its caller's."""
        if call.caller not in self._calls:
            self._calls[call.caller] = {}
            self._served.join(call.caller)
            self._push(call.caller)
        self._calls[call.caller].setdefault(call.priority, deque()).append(call)
        self._count += 1

    def first(self) -> C:
        """The call whose turn it is."""
        while self._order[0][1] != self._number.get(self._order[0][2]):
            heapq.heappop(self._order)
        lines = self._calls[self._order[0][2]]
        return lines[max(lines)][0]

    def served(self, call: C, tokens: int, *, waits: bool) -> None:
        """Notes that a text of the first call was taken, and whether it has others that wait."""
        heapq.heappop(self._order)
        self._served.charge(call.caller, tokens)
        line = self._calls[call.caller][call.priority]
        line.popleft()
        if waits:
            line.append(call)
            self._push(call.caller)
        elif self._removed(call):
            self._push(call.caller)

    def remove(self, call: C) -> bool:
        """Takes a call out; False if it does not wait."""
        line = self._calls.get(call.caller, {}).get(call.priority)
        if line is None or call not in line:
            return False
        line.remove(call)
        self._removed(call)
        return True

    def all(self) -> list[C]:
        """The calls that wait, of each caller those of the lowest priority and the newest last."""
        return [
            call
            for lines in self._calls.values()
            for priority in sorted(lines, reverse=True)
            for call in lines[priority]
        ]

    def _push(self, caller: str) -> None:
        self._number[caller] = next(self._numbers)
        heapq.heappush(self._order, (self._served.of(caller), self._number[caller], caller))

    def _removed(self, call: C) -> bool:
        """Notes that a call was taken out, and returns whether its caller has others."""
        self._count -= 1
        lines = self._calls[call.caller]
        if not lines[call.priority]:
            del lines[call.priority]
        if not lines:
            del self._calls[call.caller], self._number[call.caller]
            self._served.leave(call.caller)
        if len(self._order) > 2 * len(self._number) + MAX_OLD:
            self._order = [each for each in self._order if each[1] == self._number.get(each[2])]
            heapq.heapify(self._order)
        return bool(lines)
