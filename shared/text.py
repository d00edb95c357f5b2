"""Text from the wire in logs and errors: callers choose it, so it is cut and cleaned first."""

from __future__ import annotations

import re

# Ids of calls, callers and models: what is longer is not an id.
MAX_ID_CHARACTERS = 128
# Any other text in a log line or an error, such as a message that quotes a caller's words.
MAX_TEXT_CHARACTERS = 4096

# A traceback quotes them too.
MAX_TRACEBACK_CHARACTERS = 32_768

_NOT_PRINTABLE = re.compile(r"[^ -~]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def printable(text: str, limit: int = MAX_ID_CHARACTERS) -> str:
    """The text with at most `limit` characters, those that are not printable ASCII replaced."""
    return _NOT_PRINTABLE.sub("?", text[:limit])


def one_line(text: str) -> str:
    """The text with control characters as escapes: it cannot start a line of its own in a log."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def cut(text: str, limit: int = MAX_TEXT_CHARACTERS) -> str:
    """The text, or its beginning and how much is missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(text) - limit} more characters)"
