"""Why a model is not converted, and is served by torch instead."""

from __future__ import annotations

from text_svc.formats.load_errors import (
    out_of_memory,
    out_of_space,
)


class RefusedError(Exception):
    """The architecture cannot be converted, or the result is not right; the message says why."""


def refusal(error: Exception) -> Exception:
    """What to raise for a conversion's failure.

    A refusal is kept beside the model's files; want of memory or space is not the model's fault and
    passes, so it stays what it is.
    """
    if isinstance(error, RefusedError) or out_of_memory(error) or out_of_space(error):
        return error
    return RefusedError(f"{type(error).__name__}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """The beginning of what a library said."""
    return (str(error).strip().splitlines() or [""])[0][:200]
