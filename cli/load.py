"""Steady calls of several callers, and what they took: the measuring of `ml bench`."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Counts:
    """What callers counted.

    Attributes:
        units: finished units of work: tokens, texts or frames.
        calls: finished calls.
        first: seconds from the beginning of each call to its first answer.
        waits: seconds of each call, or in a stream of each frame, until its answer.
    """

    units: int = 0
    calls: int = 0
    first: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; 0 without any."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


async def run(
    call: Callable[[Counts, float], Awaitable[None]], callers: int, seconds: float
) -> tuple[Counts, float]:
    """Calls again and again, for some time, `callers` at once.

    Args:
        call: one call, which counts what it gets and is told when time is over
            (`time.perf_counter`). What it has got by then counts; a call may be left at that.
        callers: calls at once.
        seconds: after which no call begins.

    Returns:
        All counts, and the seconds until the last call ended.

    Raises:
        grpc.RpcError: a call has failed; all others are cancelled.
    """
    counts = Counts()
    start = time.perf_counter()
    end = start + seconds

    async def caller() -> None:
        while time.perf_counter() < end:
            await call(counts, end)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return counts, time.perf_counter() - start
