"""Whether the work of a model's process goes on: its steps, looked at with each heartbeat.

One model has one or two that work for it, such as an engine and the thread of `Infer`; each has
`Steps` of its own, so that one which hangs is seen beside another that goes on. A step is whatever
ends before long: a token, a batch, a piece of a prompt, a call that has no smaller parts.
"""

from __future__ import annotations

from weakref import WeakSet

# All of this process; it serves one model.
_all: WeakSet[Steps] = WeakSet()


class Steps:
    """The steps of one engine or thread."""

    def __init__(self) -> None:
        self._pieces = 0
        self._done = 0
        self._seen = 0
        self._stuck = 0
        _all.add(self)

    def expect(self, pieces: int) -> None:
        """Notes how many pieces of work run or wait: while there are any, steps are expected.

        Called by one thread at a time.
        """
        if not self._pieces:
            self._done += 1  # work that begins now is not stuck
        self._pieces = pieces

    def done(self) -> None:
        """Notes the end of a step. May be called in any thread; two at once count as one."""
        self._done += 1

    def look(self) -> int:
        """How many looks in a row, with this one, found work and no step since the look before."""
        moved = self._done != self._seen or not self._pieces
        self._seen = self._done
        self._stuck = 0 if moved else self._stuck + 1
        return self._stuck


def look_at_all() -> int:
    """The most that `Steps.look` says of any in this process."""
    return max((steps.look() for steps in _all), default=0)
