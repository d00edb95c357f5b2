"""Why a model is not converted, and is served by transformers instead."""

from __future__ import annotations

import re

from text_svc.formats.load_errors import out_of_memory, out_of_space

# A line of OpenVINO's own source, such as "Check '...' failed at /.../frontend.cpp:151:".
_SOURCE = re.compile(r"(Check '.*' failed at|Exception from) \S+\.[ch]pp:\d+:?")
_SUMMARY = "Summary:"
_BELOW = "Exception:"


class RefusedError(Exception):
    """The architecture cannot be converted, or the result is not right; the message says why."""


def refusal(error: Exception) -> Exception:
    """The error to raise for a failed conversion.

    A refusal is stored with the converted models and not tried again. Lack of memory or of disk
    space may pass and is not the model's fault, so these errors stay what they are.
    """
    if isinstance(error, RefusedError) or out_of_memory(error) or out_of_space(error):
        return error
    return RefusedError(f"{type(error).__name__}: {_why(str(error))[:200]}")


def _why(text: str) -> str:
    """What a message says, in one line: without the line of OpenVINO's source that it came from.

    OpenVINO ends a report with a summary, and puts the error of tracing below its own.
    """
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    lines = [line for line in lines if not _SOURCE.search(line)] or [_SOURCE.sub("", text).strip()]
    if _SUMMARY in lines:
        parts = lines[lines.index(_SUMMARY) + 1 :]
        return "; ".join(part.removeprefix("-- ") for part in parts)
    if _BELOW in lines[:-1]:
        return lines[lines.index(_BELOW) + 1]
    return next(iter(lines), "")
