"""How long the stream that runs now may idle: as the service's settings say, or as its caller asks.

`shared.rpc` enforces it; a service that lets callers choose calls `set_idle_seconds`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

_change: ContextVar[Callable[[float], None] | None] = ContextVar("change_idle", default=None)


def watch_idle(change: Callable[[float], None]) -> None:
    """Names what changes the limit of the stream that runs in this context."""
    _change.set(change)


def set_idle_seconds(seconds: float) -> None:
    """Changes the limit of the stream that runs in this context; without a stream, nothing."""
    if change := _change.get():
        change(seconds)
