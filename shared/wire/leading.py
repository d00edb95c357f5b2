"""Finds a large bytes field in a serialised message, so that it can be read without a copy."""

from __future__ import annotations

# A length above 2**32 has more digits than this; messages are far below.
_MAX_LENGTH_DIGITS = 5


def leading_bytes(message: bytes, tag: int) -> tuple[int, int]:
    """Where the content of a message's first field begins and ends.

    Args:
        message: serialised.
        tag: of a bytes field with a number below 16: the number times 8, plus 2.

    Returns:
        0, 0 if the message begins with another field, or is cut off within this one.
    """
    if not message or message[0] != tag:
        return 0, 0
    length = 0
    for position in range(1, min(len(message), _MAX_LENGTH_DIGITS + 1)):
        byte = message[position]
        length |= (byte & 0x7F) << 7 * (position - 1)
        if byte < 0x80:
            begin, end = position + 1, position + 1 + length
            return (begin, end) if end <= len(message) else (0, 0)
    return 0, 0
