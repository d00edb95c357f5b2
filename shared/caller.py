"""Who makes the current call, as Envoy says, and what the call says of its place among others."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from typing import Any

from shared.errors import OutOfRangeError
from shared.text import printable

# The name of the caller's API key, else the name of its certificate, else its address. Envoy sets
# it on every call, and takes it from nobody.
CALLER_KEY = "x-ml-caller"
# Of the caller's own calls that wait, those with a higher one are served first. ("priority" is a
# header of HTTP, which browsers send.)
PRIORITY_KEY = "x-ml-priority"
MAX_PRIORITY = 100

# What a caller gets of what callers share, beside one that is not named here, which has 1.
Weights = Mapping[str, float]
MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0

_caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="")
_priority: contextvars.ContextVar[str] = contextvars.ContextVar("priority", default="")


def caller() -> str:
    """Who makes the current call; empty for calls that did not come through Envoy."""
    return _caller.get()


def priority() -> int:
    """The priority of the current call among its caller's; 0 if it names none.

    Raises:
        OutOfRangeError: what it names is not an integer from -MAX_PRIORITY to MAX_PRIORITY.
    """
    text = _priority.get()
    if not text:
        return 0
    try:
        value = int(text)
    except ValueError:
        value = MAX_PRIORITY + 1
    if abs(value) > MAX_PRIORITY:
        raise OutOfRangeError(
            f"metadata {PRIORITY_KEY} must be an integer from {-MAX_PRIORITY} to {MAX_PRIORITY}, "
            f"not {text[:40]!r}",
            field=PRIORITY_KEY,
        )
    return value


def parse_weights(text: str) -> dict[str, float]:
    """Weights of callers from `name=number; name=number`; an empty text is none.

    Raises:
        ValueError: a part is not a name and a number from MIN_WEIGHT to MAX_WEIGHT.
    """
    weights: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, _, number = part.rpartition("=")  # the subject of a certificate has "=", too
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not name or not MIN_WEIGHT <= weight <= MAX_WEIGHT:
            raise ValueError(
                f"{part[:80]!r} must be a caller's name, '=' and a number from "
                f"{MIN_WEIGHT:g} to {MAX_WEIGHT:g}"
            )
        weights[name.strip()] = weight
    return weights


def set_caller(metadata: Mapping[str, Any]) -> None:
    """Sets the caller and the priority of this task from a call's metadata."""
    _caller.set(printable(str(metadata.get(CALLER_KEY, ""))))
    _priority.set(printable(str(metadata.get(PRIORITY_KEY, ""))))


def caller_metadata() -> dict[str, str]:
    """Metadata that name the current call's caller and priority in a call on its behalf."""
    named = {CALLER_KEY: _caller.get(), PRIORITY_KEY: _priority.get()}
    return {key: text for key, text in named.items() if text}
