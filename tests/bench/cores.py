"""How many cores this machine really gives, which says more than how many it names."""

from __future__ import annotations

import multiprocessing
import os
import time


def _count(seconds: float, start: float) -> int:
    """Rounds of fixed work within `seconds` from `start` on."""
    while time.monotonic() < start:
        pass
    rounds = 0
    while time.monotonic() < start + seconds:
        sum(range(2000))
        rounds += 1
    return rounds


def effective_cores(seconds: float = 1.0) -> float:
    """Work done by one busy process a core, in units of what one alone does."""
    named = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    with context.Pool(named) as pool:
        pool.starmap(_count, [(0.05, time.monotonic())] * named)
        alone = pool.starmap(_count, [(seconds, time.monotonic() + 0.1)])
        together = pool.starmap(_count, [(seconds, time.monotonic() + 0.1)] * named, chunksize=1)
    return sum(together) / alone[0]
