"""Tools of /v1/chat/completions: those of a request, and calls in messages and answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import JsonValue

from http_svc.bodies import Body
from http_svc.refusals import refuse
from ml import transformers_pb2 as pb


class Function(Body):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """The name of a function."""

    name: str


class NamedTool(Body):
    """The tool that the model must call."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Body):
    """A function that an assistant called."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call in the message of an assistant."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def put_tools(
    request: pb.ChatRequest,
    tools: Sequence[Tool],
    choice: ToolChoice | None,
    parallel: bool | None,
) -> None:
    """Sets the tools of a request, if the model is to be told of any.

    Raises:
        InvalidArgumentError: the arguments of a tool must fit its schema, which no model promises.
    """
    if choice == "none":
        return
    for index, tool in enumerate(tools):
        function = tool.function
        field = f"tools[{index}].function.strict"
        refuse([(field, function.strict, "arguments are not held to their schema; leave it out")])
        request.tools.add(
            name=function.name,
            description=function.description or "",
            parameters=json.dumps(function.parameters, ensure_ascii=False)
            if function.parameters
            else "",
        )
    if isinstance(choice, NamedTool):
        request.tool_name = choice.function.name
    elif choice:
        request.tool_choice = choice
    if tools and parallel is not None:
        request.parallel_tool_calls = parallel


def put_calls(message: pb.ChatMessage, calls: Iterable[ToolCall]) -> None:
    """Sets the calls that an assistant made."""
    for call in calls:
        message.tool_calls.add(
            id=call.id, name=call.function.name, arguments=call.function.arguments
        )


def delta_of(delta: pb.ToolCallDelta) -> dict[str, Any]:
    """What is new of a call, as OpenAI writes it."""
    if not delta.id:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}


def add_delta(calls: list[dict[str, Any]], delta: pb.ToolCallDelta) -> None:
    """Adds what is new of a call to the calls so far."""
    if delta.index == len(calls):
        function = {"name": delta.name, "arguments": delta.arguments}
        calls.append({"id": delta.id, "type": "function", "function": function})
    else:
        calls[delta.index]["function"]["arguments"] += delta.arguments
