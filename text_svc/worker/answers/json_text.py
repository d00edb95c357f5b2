"""JSON out of what models write instead of it."""

from __future__ import annotations

import json

_WORDS = {"None": "null", "True": "true", "False": "false"}


def escaped(text: str) -> str:
    """A part of a text, as it is in a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def json_or_text(text: str) -> str:
    """A JSON value as it is, Python's words for three of them, or the text as a JSON string."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text


def unquoted(text: str) -> str:
    """The text of a JSON string; without its quotes alone, if it is not valid."""
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        return text[1:-1]


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and the infinities are not JSON
