"""Conversations as they come from the wire."""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import InvalidArgumentError, MissingFieldError

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 1024


def check_messages(roles: Sequence[str]) -> None:
    """Refuses a conversation without messages, with too many, or with a role that is not known.

    Raises:
        MissingFieldError: there are none.
        InvalidArgumentError: an unknown role, or more than MAX_MESSAGES.
    """
    if not roles:
        raise MissingFieldError("messages is empty", field="messages")
    if len(roles) > MAX_MESSAGES:
        raise InvalidArgumentError(
            f"{len(roles)} messages are over the limit of {MAX_MESSAGES}", field="messages"
        )
    for index, role in enumerate(roles):
        if role not in ROLES:
            raise InvalidArgumentError(
                f"messages[{index}].role is {role[:40]!r}; known roles are {', '.join(ROLES)}",
                field=f"messages[{index}].role",
            )
