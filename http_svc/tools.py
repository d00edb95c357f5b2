"""Tools of a request, whatever the interface that it came by."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import JsonValue

from http_svc.bodies import Body
from ml import transformers_pb2 as pb

# A JSON schema.
Parameters = dict[str, JsonValue]


class Function(Body):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: Parameters | None = None
    strict: bool | None = None


def put_function(request: pb.ChatRequest, function: Function) -> None:
    """Adds a tool to a request."""
    parameters = function.parameters
    request.tools.add(
        name=function.name,
        description=function.description or "",
        parameters=json.dumps(parameters, ensure_ascii=False) if parameters else "",
        strict=bool(function.strict),
    )


def put_choice(
    request: pb.ChatRequest,
    choice: Literal["auto", "required"] | None,
    name: str,
    parallel: bool | None,
) -> None:
    """Sets which of its tools a request's answer calls.

    Args:
        request: the request, with its tools.
        choice: whether it must call one; None is the default.
        name: the one that it must call; empty for any.
        parallel: whether it may have several calls; None is the default.
    """
    if name:
        request.tool_name = name
    elif choice:
        request.tool_choice = choice
    if request.tools and parallel is not None:
        request.parallel_tool_calls = parallel
