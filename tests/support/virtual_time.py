"""An event loop whose time passes at once: what waits for a time is due as soon as nothing else is.

For code that waits for nothing but times and its own tasks; nothing may come from outside.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Reports nothing, and lets the loop's time pass in place of waiting."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("all tasks wait, and none for a time")
        self.passed += max(timeout, 0.0)
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = _Selector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.passed


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine from time 0 on; its times are those of the loop."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)


def now() -> float:
    """The time of the loop that runs."""
    return asyncio.get_running_loop().time()
