"""Why a model is not converted, and is served by torch instead."""

from __future__ import annotations


class RefusedError(Exception):
    """The architecture cannot be converted, or the result is not right; the message says why."""


def first_line(error: Exception) -> str:
    """The beginning of what a library said."""
    return (str(error).strip().splitlines() or [""])[0][:200]
