"""Checks of request fields that several servicers share."""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import InputTooLargeError, MissingFieldError


def check_sizes(texts: Sequence[str], field: str, limit: int, *, empty: bool = False) -> None:
    """Refuses an empty text (unless `empty`) and texts of more than `limit` bytes together.

    Raises:
        MissingFieldError, InputTooLargeError: with the field or the limit.
    """
    if not empty and not all(texts):
        raise MissingFieldError(f"{field} is empty", field=field)
    size = sum(len(text.encode()) for text in texts)
    if size > limit:
        raise InputTooLargeError(
            f"{field} has {size} bytes, the limit is {limit}", metadata={"limit": str(limit)}
        )
