"""The tools and calls of a request: checked, and as chat templates take them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.worker.answers.pieces import MAX_CALLS, NAME
from text_svc.worker.answers.tools import Tools

MAX_TOOLS = 128
# Levels of lists and objects in the schema of a tool.
MAX_SCHEMA_DEPTH = 64

CHOICES = ("auto", "none", "required")


@dataclass(frozen=True)
class ToolRequest:
    """The tools that a model may call in its answer.

    Attributes:
        declared: as OpenAI's API has them.
        tools: what reading calls needs of them.
        parallel: whether there may be more than one call.
        required: names of the tools of which one must be called; empty if the model decides.
        strict: names of the tools whose arguments fit their schemas.
        named: whether the request names the one tool that must be called.
    """

    declared: tuple[dict[str, Any], ...]
    tools: Tools
    parallel: bool
    required: tuple[str, ...] = ()
    strict: frozenset[str] = frozenset()
    named: bool = False


def read_tools(request: pb.ChatRequest) -> ToolRequest | None:
    """The tools of a request; None if the model is to call none.

    Raises:
        InvalidArgumentError: they are too many, or one of them is not valid, or they do not fit
            what must be called.
    """
    choice = request.tool_choice or "auto"
    if choice not in CHOICES:
        raise InvalidArgumentError(
            f"tool_choice is {choice[:40]!r}; it must be one of {', '.join(CHOICES)}",
            field="tool_choice",
        )
    if len(request.tools) > MAX_TOOLS:
        raise InvalidArgumentError(
            f"the request has {len(request.tools)} tools; the limit is {MAX_TOOLS}", field="tools"
        )
    schemas: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(request.tools):
        if not NAME.fullmatch(tool.name):
            raise InvalidArgumentError(
                f"tools[{index}].name is {tool.name[:80]!r}; it must have 1 to 64 letters, digits, "
                "'_', '-' and '.'",
                field=f"tools[{index}].name",
            )
        if tool.name in schemas:
            raise InvalidArgumentError(
                f"tools[{index}].name is {tool.name!r}, as of another tool",
                field=f"tools[{index}].name",
            )
        schemas[tool.name] = _schema(tool.parameters, f"tools[{index}].parameters")
    required = _required(request, choice, schemas)
    if not schemas or choice == "none":
        return None
    return ToolRequest(
        declared=tuple(
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": schemas[tool.name],
                },
            }
            for tool in request.tools
        ),
        tools=Tools(schemas),
        parallel=request.parallel_tool_calls or not request.HasField("parallel_tool_calls"),
        required=required,
        strict=frozenset(tool.name for tool in request.tools if tool.strict),
        named=bool(request.tool_name),
    )


def texts_of(request: pb.ChatRequest) -> Iterator[str]:
    """All texts of a request that a prompt is made of."""
    for message in request.messages:
        yield from (message.content, message.reasoning, message.tool_call_id)
        for call in message.tool_calls:
            yield from (call.id, call.name, call.arguments)
    for tool in request.tools:
        yield from (tool.name, tool.description, tool.parameters)


def turns_of(
    messages: Sequence[pb.ChatMessage], *, developer: str, id_characters: int
) -> list[dict[str, Any]]:
    """Messages as chat templates take them.

    Args:
        messages: their roles are known ones.
        developer: what the template calls the role "developer".
        id_characters: how long the ids of calls must be; 0 if they can be anything.

    Raises:
        InvalidArgumentError: a message has calls or the id of one that is not for its role, or too
            many calls, or a call is not valid.
    """
    names: dict[str, str] = {}
    turns = []
    for index, message in enumerate(messages):
        role = developer if message.role == "developer" else message.role
        turn: dict[str, Any] = {"role": role, "content": message.content}
        for name, given, of_role in (
            ("tool_calls", len(message.tool_calls), "assistant"),
            ("reasoning", message.reasoning, "assistant"),
            ("tool_call_id", message.tool_call_id, "tool"),
        ):
            if given and message.role != of_role:
                raise InvalidArgumentError(
                    f"messages[{index}].{name} is set, but only messages of role {of_role!r} have "
                    "it",
                    field=f"messages[{index}].{name}",
                )
        if message.reasoning:
            turn["reasoning"] = message.reasoning
        if message.tool_calls:
            names |= {call.id: call.name for call in message.tool_calls}
            turn["tool_calls"] = _calls(message.tool_calls, index, id_characters)
        if message.role == "tool":
            turn["tool_call_id"] = _id(message.tool_call_id, id_characters)
            if name := names.get(message.tool_call_id, ""):
                turn["name"] = name
        turns.append(turn)
    return turns


def _calls(calls: Sequence[pb.ToolCall], index: int, id_characters: int) -> list[dict[str, Any]]:
    field = f"messages[{index}].tool_calls"
    if len(calls) > MAX_CALLS:
        raise InvalidArgumentError(
            f"{field} has {len(calls)} calls; the limit is {MAX_CALLS}", field=field
        )
    for number, call in enumerate(calls):
        if not NAME.fullmatch(call.name):
            raise InvalidArgumentError(
                f"{field}[{number}].name is {call.name[:80]!r}; it must have 1 to 64 letters, "
                "digits, '_', '-' and '.'",
                field=f"{field}[{number}].name",
            )
    return [
        {
            "id": _id(call.id, id_characters),
            "type": "function",
            "function": {"name": call.name, "arguments": _arguments(call.arguments)},
        }
        for call in calls
    ]


def _arguments(text: str) -> Any:
    """An object where it is one: a model may have written something else."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) and _depth(value) <= MAX_SCHEMA_DEPTH else text


def _id(text: str, characters: int) -> str:
    """An id as the model's template wants it: another one is replaced, always by the same."""
    if not characters or (len(text) == characters and text.isascii() and text.isalnum()):
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:characters]


def _schema(text: str, field: str) -> dict[str, Any]:
    if not text.strip():
        return {"type": "object", "properties": {}}
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{field} is not valid JSON: {str(error)[:200]}", field=field
        ) from None
    if not isinstance(schema, dict):
        raise InvalidArgumentError(f"{field} must be a JSON object", field=field)
    if (depth := _depth(schema)) > MAX_SCHEMA_DEPTH:
        raise InvalidArgumentError(
            f"{field} has {depth} levels; the limit is {MAX_SCHEMA_DEPTH}", field=field
        )
    return schema


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [
            inner for each in level for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _required(
    request: pb.ChatRequest, choice: str, schemas: dict[str, dict[str, Any]]
) -> tuple[str, ...]:
    name = request.tool_name
    if name and name not in schemas:
        raise InvalidArgumentError(
            f"tool_name is {name[:80]!r}; it must be one of {', '.join(schemas)[:400] or 'none'}",
            field="tool_name",
        )
    if name and request.tool_choice not in ("", "required"):
        raise InvalidArgumentError(
            f"tool_name is set, but tool_choice is {choice!r}; it must be empty or 'required'",
            field="tool_name",
        )
    if choice == "required" and not schemas:
        raise InvalidArgumentError("tool_choice is 'required', but tools is empty", field="tools")
    if name:
        return (name,)
    return tuple(schemas) if choice == "required" else ()
