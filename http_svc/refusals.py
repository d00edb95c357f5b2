"""Fields that would change an answer and that no model here acts on: refused, with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shared.errors import InvalidArgumentError


def refuse(fields: Iterable[tuple[str, Any, str]]) -> None:
    """Refuses the first field that asks for something.

    Args:
        fields: name, whether it asks for something, and why it is refused.

    Raises:
        InvalidArgumentError: one does.
    """
    for name, asks, why in fields:
        if asks:
            raise InvalidArgumentError(f"{name}: {why}", field=name)
