"""Conversations: checked, and rendered with the model's own template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from shared.errors import FailedPreconditionError, InvalidArgumentError, MissingFieldError

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


def render(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation, ready for the assistant's answer.

    Raises:
        FailedPreconditionError: the model has no chat template.
        InvalidArgumentError: its template refuses these messages.
    """
    if not tokenizer.chat_template:
        raise FailedPreconditionError(
            "the model has no chat template; use GenerateText, or load a model made for chat"
        )
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"the model's chat template refuses these messages: {str(error)[:200]}",
            field="messages",
        ) from None
    # The template writes the special tokens itself.
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
