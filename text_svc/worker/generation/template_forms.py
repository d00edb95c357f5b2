"""The forms in which a chat template may want a conversation, and how to tell which one it wants.

A template wants the content of a message as a string, or as a list of parts with a type; the
arguments of a call as an object, or as JSON text; and the content of calls alone as "", or as none.
It gives no error for the other: it leaves something out, or writes a list as Python does. So a
probe is rendered first, a conversation of the same shape with other texts: where they come out
decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple

Message = dict[str, Any]
Messages = list[Message]

# Roles whose text a template must not leave out. Of the assistant's, many write only a part.
CARRIED = ("system", "developer", "user", "tool")

_TOOL = "word0tool"
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _TOOL,
        "description": "a tool",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "a place"}},
            "required": ["place"],
        },
    },
}


class Seen(NamedTuple):
    """What comes out of a probe.

    Attributes:
        left_out: the messages whose texts do not.
        calls: whether all calls do, with their arguments.
        tools: whether the tools do.
    """

    left_out: list[int]
    calls: bool
    tools: bool


def forms(messages: Messages, texts: Iterable[str] | None) -> list[Messages]:
    """A conversation in all forms, the most usual one first.

    Args:
        messages: contents are strings, or parts if there are `texts`; arguments are objects where
            they can be.
        texts: the contents as strings.
    """
    contents = [messages, _with_contents(messages, texts or map(_parts, messages))]
    if not any(message.get("tool_calls") for message in messages):
        return contents
    return [
        [_with_calls(message, as_text=as_text, no_content=no_content) for message in form]
        for form, as_text, no_content in product(contents, (False, True), (False, True))
    ]


def probe(messages: Messages) -> Messages:
    """A conversation of the same shape, in which each text is a word that is nowhere else."""
    return [
        _probe_calls(index, message) | {"content": _probe_content(index, message["content"])}
        for index, message in enumerate(messages)
    ]


def seen(probed: Messages, text: str) -> Seen:
    """What has come out of a probe."""
    out = text.casefold()
    return Seen(
        [
            index
            for index, message in enumerate(probed)
            if message["role"] in CARRIED
            for word in _words(message["content"])
            # The last two are a list that was written as text.
            if word not in out or f"'text': '{word}" in out or f'"text": "{word}' in out
        ],
        all(
            _call_is_out(index, number, out)
            for index, message in enumerate(probed)
            for number, _ in enumerate(message.get("tool_calls", ()))
        ),
        _TOOL in out,
    )


def _with_contents(messages: Messages, contents: Iterable[Any]) -> Messages:
    return [
        message | {"content": content} for message, content in zip(messages, contents, strict=True)
    ]


def _parts(message: Message) -> list[dict[str, str]]:
    return [{"type": "text", "text": message["content"]}]


def _with_calls(message: Message, *, as_text: bool, no_content: bool) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    if no_content and not any(_words(message["content"])):
        message = message | {"content": None}
    if not as_text:
        return message
    return message | {"tool_calls": [_with_arguments(call, _json) for call in calls]}


def _with_arguments(call: Message, change: Any) -> Message:
    function = call["function"]
    return call | {"function": function | {"arguments": change(function["arguments"])}}


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _probe_content(index: int, content: Any) -> Any:
    if content is None or isinstance(content, str):
        return f"word{index}end" if content else content
    return [
        part | {"text": f"word{index}part{number}end"} if part.get("text") else part
        for number, part in enumerate(content)
    ]


def _probe_calls(index: int, message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = []
    for number, call in enumerate(message["tool_calls"]):
        name, key, value = _call_words(index, number)
        as_text = isinstance(call["function"]["arguments"], str)
        arguments = json.dumps({key: value}) if as_text else {key: value}
        calls.append(call | {"function": {"name": name, "arguments": arguments}})
    return message | {"tool_calls": calls}


def _call_words(index: int, number: int) -> tuple[str, str, str]:
    start = f"word{index}call{number}"
    return f"{start}name", f"{start}key", f"{start}value"


def _call_is_out(index: int, number: int, out: str) -> bool:
    name, key, value = _call_words(index, number)
    return (
        all(word in out for word in (name, key, value))
        and f'\\"{key}' not in out  # text that was written as JSON again
        and f"'{key}': '{value}'" not in out  # an object that was written as text
    )


def _words(content: Any) -> list[str]:
    if content is None:
        return []
    texts = [content] if isinstance(content, str) else [part.get("text") for part in content]
    return [text for text in texts if text]
