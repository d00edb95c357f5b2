"""/v1/messages."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from http_svc.answers import Answer, Events, as_json, event, whole_json
from http_svc.bodies import Body, Items
from http_svc.content import decoded
from http_svc.forms import Schema, put_form
from http_svc.openai.chat import joined
from http_svc.refusals import refuse
from http_svc.sampling import INT32, NewTokens
from http_svc.services import Services
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
    """What an assistant thought, which models here do not read again."""

    type: Literal["thinking", "redacted_thinking"]


Block = Annotated[TextBlock | ImageBlock | ThinkingBlock, Field(discriminator="type")]


class Message(Body):
    """A message of the conversation."""

    role: Literal["user", "assistant"]
    content: str | Items[Block]


class Thinking(Body):
    """Whether the model thinks first."""

    type: Literal["enabled", "disabled", "adaptive"]


class Format(Body):
    """The form of the answer."""

    type: Literal["json_schema"]
    json_schema: Schema | None = Field(None, alias="schema")


class OutputConfig(Body):
    """How the answer is written."""

    format: Format | None = None


class MessagesBody(Body):
    """A request of /v1/messages."""

    model: str
    messages: Items[Message]
    max_tokens: NewTokens
    system: str | Items[TextBlock] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, ge=0, le=INT32)
    stop_sequences: Items[str] | None = None
    stream: bool | None = None
    tools: Items[JsonValue] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    mcp_servers: Items[JsonValue] | None = None


_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


async def answer(body: MessagesBody, services: Services) -> Answer:
    """Generates the next message of a conversation.

    Raises:
        InvalidArgumentError: a field asks for something that is not supported.
    """
    responses = services.chat(_request(body))
    identifier = f"msg_{uuid.uuid4().hex}"
    if body.stream:
        return Events(_events(responses, identifier, body.model))
    text, last = await joined(responses)
    message = _message(identifier, body.model) | {
        "content": [_text_block(text)],
        "stop_reason": _STOP_REASONS.get(last.finish_reason, "end_turn"),
        "usage": _usage(last.usage),
    }
    return whole_json(message)


def _message(identifier: str, model: str) -> dict[str, Any]:
    return {
        "id": identifier,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": _usage(pb.GenerationUsage()),
    }


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def _usage(usage: pb.GenerationUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.generated_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": None,
        "inference_geo": None,
        "output_tokens_details": None,
        "server_tool_use": None,
        "service_tier": "standard",
    }


def _event(kind: str, **fields: Any) -> bytes:
    return event(as_json({"type": kind, **fields}), kind)


async def _events(
    responses: AsyncGenerator[pb.ChatResponse, None], identifier: str, model: str
) -> AsyncGenerator[bytes, None]:
    first = _event("message_start", message=_message(identifier, model))
    first += _event("content_block_start", index=0, content_block=_text_block(""))
    mark = "\N{OBJECT REPLACEMENT CHARACTER}"
    delta = _event("content_block_delta", index=0, delta={"type": "text_delta", "text": mark})
    before, after = delta.split(as_json(mark))
    async with aclosing(responses):
        async for response in responses:
            piece, first = first, b""
            if response.content:
                piece += before + json.dumps(response.content).encode() + after
            if response.done:
                reason = _STOP_REASONS.get(response.finish_reason, "end_turn")
                piece += _event("content_block_stop", index=0)
                piece += _event(
                    "message_delta",
                    delta={"stop_reason": reason, "stop_sequence": None},
                    usage=_usage(response.usage),
                )
                piece += _event("message_stop")
            if piece:
                yield piece


def _request(body: MessagesBody) -> pb.ChatRequest:
    thinks = body.thinking and body.thinking.type == "enabled"
    refuse(
        [
            ("tools", body.tools, "tools are not supported"),
            ("mcp_servers", body.mcp_servers, "tools are not supported"),
            ("output_format", body.output_format, "send output_config.format"),
            ("thinking", thinks, "it is not supported"),
        ]
    )
    request = pb.ChatRequest(
        model=body.model, max_tokens=body.max_tokens, stop=body.stop_sequences or ()
    )
    if body.temperature is not None:
        request.temperature = body.temperature
    if body.top_p is not None:
        request.top_p = body.top_p
    if body.top_k is not None:
        request.top_k = body.top_k
    if body.output_config and (form := body.output_config.format):
        put_form(request, form.type, form.json_schema, "output_config.format.schema")
    if body.system:
        system = body.system
        text = system if isinstance(system, str) else "\n".join(part.text for part in system)
        request.messages.add(role="system", content=text)
    if not body.messages:
        raise MissingFieldError("messages is empty", field="messages")
    for index, message in enumerate(body.messages):
        _put(request.messages.add(role=message.role), message, f"messages[{index}]")
    return request


def _put(made: pb.ChatMessage, message: Message, field: str) -> None:
    if isinstance(message.content, str):
        made.content = message.content
        return
    texts = []
    for index, block in enumerate(message.content):
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ImageBlock):
            data = decoded(block.source.data, f"{field}.content[{index}].source.data")
            made.images.append(pb.ImageData(data=data))
    made.content = "\n".join(texts)
