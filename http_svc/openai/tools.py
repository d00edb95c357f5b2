"""Tools of /v1/chat/completions: those of a request, and calls in messages and answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from http_svc.bodies import Body
from http_svc.tools import Function, put_choice, put_function
from ml import transformers_pb2 as pb


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
    """Sets the tools of a request, if the model is to be told of any."""
    if choice == "none":
        return
    for tool in tools:
        put_function(request, tool.function)
    if isinstance(choice, NamedTool):
        put_choice(request, None, choice.function.name, parallel)
    else:
        put_choice(request, choice, "", parallel)


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
