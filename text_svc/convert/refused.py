"""Why a model is not converted, and is served by transformers instead."""

from __future__ import annotations

from text_svc.formats.load_errors import out_of_memory, out_of_space


class RefusedError(Exception):
    """The architecture cannot be converted, or the result is not right; the message says why."""


def refusal(error: Exception) -> Exception:
    """The error to raise for a failed conversion.

    A refusal is stored with the converted models and not tried again. Lack of memory or of disk
    space may pass and is not the model's fault, so these errors stay what they are.
    """
    if isinstance(error, RefusedError) or out_of_memory(error) or out_of_space(error):
        return error
    first_line = (str(error).strip().splitlines() or [""])[0][:200]
    return RefusedError(f"{type(error).__name__}: {first_line}")
