"""Checks the messages of a conversation."""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import InvalidArgumentError, MissingFieldError

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 1024


def check_messages(roles: Sequence[str]) -> None:
    """Refuses a conversation without messages, with too many, or with an unknown role.

    Raises:
        MissingFieldError: there are no messages.
        InvalidArgumentError: a role is unknown, or there are more than MAX_MESSAGES messages.
    """
    if not roles:
        raise MissingFieldError("messages is empty", field="messages")
    if len(roles) > MAX_MESSAGES:
        raise InvalidArgumentError(
            f"the request has {len(roles)} messages; the limit is {MAX_MESSAGES}", field="messages"
        )
    for index, role in enumerate(roles):
        if role not in ROLES:
            raise InvalidArgumentError(
                f"messages[{index}].role is {role[:40]!r}; it must be one of {', '.join(ROLES)}",
                field=f"messages[{index}].role",
            )
