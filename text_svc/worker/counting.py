"""Whether what a worker does counts in its metrics: a model's trial does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import Histogram

_counts = True


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Nothing in this process counts meanwhile."""
    global _counts
    _counts = False
    try:
        yield
    finally:
        _counts = True


def observe(histogram: Histogram, value: float) -> None:
    """Counts a value, unless nothing counts."""
    if _counts:
        histogram.observe(value)
