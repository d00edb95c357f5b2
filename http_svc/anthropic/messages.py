"""/v1/messages, and /v1/messages/count_tokens."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, Literal

from pydantic import Field

from http_svc.answers import Answer, Events, as_json, event, whole_json
from http_svc.anthropic.conversation import Conversation
from http_svc.blocks import Block, Blocks, Step, whole
from http_svc.bodies import Body, Items
from http_svc.forms import Schema, put_form
from http_svc.refusals import refuse
from http_svc.sampling import INT32, NewTokens
from http_svc.services import Services
from ml import transformers_pb2 as pb


class Format(Body):
    """The form of the answer."""

    type: Literal["json_schema"]
    json_schema: Schema | None = Field(None, alias="schema")


class OutputConfig(Body):
    """How the answer is written."""

    format: Format | None = None


class MessagesBody(Conversation):
    """A request of /v1/messages."""

    max_tokens: NewTokens
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, ge=0, le=INT32)
    stop_sequences: Items[str] | None = None
    stream: bool | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None


_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
# In place of the text in an event that is made once for a block.
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


async def answer(body: MessagesBody, services: Services) -> Answer:
    """Generates the next message of a conversation.

    Raises:
        InvalidArgumentError: a field asks for something that is not supported.
    """
    responses = services.chat(_request(body))
    identifier = f"msg_{uuid.uuid4().hex}"
    if body.stream:
        return Events(_events(responses, identifier, body.model))
    blocks, last = await whole(responses)
    message = _message(identifier, body.model) | {
        "content": list(_contents(blocks)),
        "stop_reason": _STOP_REASONS.get(last.finish_reason, "end_turn"),
        "usage": _usage(last.usage),
    }
    return whole_json(message)


async def count_tokens(body: Conversation, services: Services) -> Answer:
    """Counts the tokens of a conversation, as `answer` would read it.

    Raises:
        InvalidArgumentError: a field asks for something that is not supported.
    """
    return whole_json({"input_tokens": await services.count_tokens(body.request())})


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


def _contents(blocks: Iterable[Block]) -> Iterable[dict[str, Any]]:
    """Whole blocks; a call that the limit of tokens has cut is none."""
    for block in blocks:
        made = _block(block)
        if block.kind == "reasoning":
            made["thinking"] = block.text
        elif block.kind == "text":
            made["text"] = block.text
        else:
            try:
                made["input"] = json.loads(block.text or "{}")
            except ValueError:
                continue
        yield made


def _block(block: Block) -> dict[str, Any]:
    """A block as it begins."""
    if block.kind == "reasoning":
        # A signature says that the block is Anthropic's; here nobody asks for it.
        return {"type": "thinking", "thinking": "", "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": "", "citations": None}
    return {
        "type": "tool_use",
        "id": block.call_id,
        "name": block.name,
        "input": {},
        "caller": {"type": "direct"},
    }


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


class _BlockEvents:
    """The events of blocks."""

    def __init__(self) -> None:
        self._before = self._after = b""

    def piece(self, step: Step) -> bytes:
        """The event of a step."""
        index = step.block.index
        if step.what == "add":
            return self._before + json.dumps(step.text).encode() + self._after
        if step.what == "end":
            return _event("content_block_stop", index=index)
        # Most events of a stream differ in their text alone.
        delta = {
            "reasoning": {"type": "thinking_delta", "thinking": _MARK},
            "text": {"type": "text_delta", "text": _MARK},
            "call": {"type": "input_json_delta", "partial_json": _MARK},
        }[step.block.kind]
        made = _event("content_block_delta", index=index, delta=delta)
        self._before, self._after = made.split(as_json(_MARK))
        return _event("content_block_start", index=index, content_block=_block(step.block))


async def _events(
    responses: AsyncGenerator[pb.ChatResponse, None], identifier: str, model: str
) -> AsyncGenerator[bytes, None]:
    first = _event("message_start", message=_message(identifier, model))
    blocks, events = Blocks(), _BlockEvents()
    async with aclosing(responses):
        async for response in responses:
            piece, first = first, b""
            for step in blocks.steps(response):
                piece += events.piece(step)
            if response.done:
                reason = _STOP_REASONS.get(response.finish_reason, "end_turn")
                piece += _event(
                    "message_delta",
                    delta={"stop_reason": reason, "stop_sequence": None},
                    usage=_usage(response.usage),
                )
                piece += _event("message_stop")
            if piece:
                yield piece


def _request(body: MessagesBody) -> pb.ChatRequest:
    refuse([("output_format", body.output_format, "send output_config.format")])
    request = body.request()
    request.max_tokens = body.max_tokens
    request.stop.extend(body.stop_sequences or ())
    if body.temperature is not None:
        request.temperature = body.temperature
    if body.top_p is not None:
        request.top_p = body.top_p
    if body.top_k is not None:
        request.top_k = body.top_k
    if body.output_config and (form := body.output_config.format):
        put_form(request, form.type, form.json_schema, "output_config.format.schema")
    return request
