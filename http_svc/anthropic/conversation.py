"""Conversations as clients of Anthropic send them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from http_svc.bodies import Body, Items
from http_svc.content import decoded
from http_svc.refusals import refuse
from http_svc.tools import Function, Parameters, put_choice, put_function
from ml import transformers_pb2 as pb
from shared.errors import MissingFieldError


class TextBlock(Body):
    """Text."""

    type: Literal["text"]
    text: str


class ImageSource(Body):
    """A picture as base64."""

    type: Literal["base64"]
    data: str


class ImageBlock(Body):
    """A picture."""

    type: Literal["image"]
    source: ImageSource


class ThinkingBlock(Body):
    """What an assistant thought before it answered."""

    type: Literal["thinking"]
    thinking: str


class RedactedBlock(Body):
    """What an assistant thought and nobody can read."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(Body):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, JsonValue]


class ToolResultBlock(Body):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Items[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]] = ""


Block = Annotated[
    TextBlock | ImageBlock | ThinkingBlock | RedactedBlock | ToolUseBlock | ToolResultBlock,
    Field(discriminator="type"),
]


class Message(Body):
    """A message of the conversation."""

    role: Literal["user", "assistant"]
    content: str | Items[Block]


class Tool(Body):
    """A tool that the model may call; those of another type run at Anthropic's."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: Parameters
    strict: bool | None = None


class ToolChoice(Body):
    """Whether the model must call a tool."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedTool(Body):
    """The tool that the model must call."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Whether the model thinks first, and its answer has blocks of that."""

    type: Literal["enabled", "disabled", "adaptive"]


class Conversation(Body):
    """What the tokens of a prompt depend on."""

    model: str
    messages: Items[Message]
    system: str | Items[TextBlock] | None = None
    tools: Items[Tool] | None = None
    tool_choice: Annotated[ToolChoice | NamedTool, Field(discriminator="type")] | None = None
    thinking: Thinking | None = None
    mcp_servers: Items[JsonValue] | None = None

    def request(self) -> pb.ChatRequest:
        """The request of its next message.

        Raises:
            InvalidArgumentError: a field asks for something that is not supported.
        """
        refuse([("mcp_servers", self.mcp_servers, "nothing is called from here")])
        request = pb.ChatRequest(model=self.model)
        if self.system:
            system = self.system
            text = system if isinstance(system, str) else "\n".join(part.text for part in system)
            request.messages.add(role="system", content=text)
        if not self.messages:
            raise MissingFieldError("messages is empty", field="messages")
        for index, message in enumerate(self.messages):
            _put(request, message, f"messages[{index}]")
        self._put_tools(request)
        if self.thinking and self.thinking.type != "disabled":
            request.separate_reasoning = True
            if self.thinking.type == "enabled":
                request.think = True
        return request

    def _put_tools(self, request: pb.ChatRequest) -> None:
        choice = self.tool_choice
        if choice and choice.type == "none":
            return
        for tool in self.tools or ():
            function = Function(
                name=tool.name,
                description=tool.description,
                parameters=tool.input_schema,
                strict=tool.strict,
            )
            put_function(request, function)
        if choice:
            put_choice(
                request,
                "required" if choice.type == "any" else "auto",
                choice.name if isinstance(choice, NamedTool) else "",
                None
                if choice.disable_parallel_tool_use is None
                else not choice.disable_parallel_tool_use,
            )


def _put(request: pb.ChatRequest, message: Message, field: str) -> None:
    """Adds a message; the results of tools in it become messages of their own."""
    if isinstance(message.content, str):
        request.messages.add(role=message.role, content=message.content)
        return
    rest = []
    for index, block in enumerate(message.content):
        place = f"{field}.content[{index}]"
        if isinstance(block, ToolResultBlock):
            made = request.messages.add(role="tool", tool_call_id=block.tool_use_id)
            if isinstance(block.content, str):
                made.content = block.content
            else:
                _put_blocks(made, enumerate(block.content), f"{place}.content")
        else:
            rest.append((index, block))
    if rest or not message.content:
        made = request.messages.add(role=message.role)
        _put_blocks(made, rest, f"{field}.content")


def _put_blocks(made: pb.ChatMessage, blocks: Iterable[tuple[int, Block]], field: str) -> None:
    texts = []
    for index, block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ImageBlock):
            data = decoded(block.source.data, f"{field}[{index}].source.data")
            made.images.append(pb.ImageData(data=data))
        elif isinstance(block, ThinkingBlock):
            made.reasoning += block.thinking
        elif isinstance(block, ToolUseBlock):
            arguments = json.dumps(block.input, ensure_ascii=False)
            made.tool_calls.add(id=block.id, name=block.name, arguments=arguments)
    made.content = "\n".join(texts)
