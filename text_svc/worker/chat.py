"""Conversations as they come from the wire."""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import InvalidArgumentError, MissingFieldError

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 1024


def check_messages(messages: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Role and content pairs as the templates take them.

    Raises:
        MissingFieldError: there are none.
        InvalidArgumentError: an unknown role, or more than MAX_MESSAGES.
    """
    if not messages:
        raise MissingFieldError("messages is empty", field="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidArgumentError(
            f"{len(messages)} messages are over the limit of {MAX_MESSAGES}", field="messages"
        )
    for index, (role, _) in enumerate(messages):
        if role not in ROLES:
            raise InvalidArgumentError(
                f"messages[{index}].role is {role[:40]!r}; known roles are {', '.join(ROLES)}",
                field=f"messages[{index}].role",
            )
    return [{"role": role, "content": content} for role, content in messages]
