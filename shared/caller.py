"""Who makes the current call, as Envoy says."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from typing import Any

from shared.text import printable

# The name of the caller's API key, else the name of its certificate, else its address. Envoy sets
# it on every call, and takes it from nobody.
CALLER_KEY = "x-ml-caller"

_caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="")


def caller() -> str:
    """Who makes the current call; empty for calls that did not come through Envoy."""
    return _caller.get()


def set_caller(metadata: Mapping[str, Any]) -> None:
    """Sets the caller of this task from a call's metadata."""
    _caller.set(printable(str(metadata.get(CALLER_KEY, ""))))
