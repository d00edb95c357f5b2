"""/v1/responses, without what would need a memory: earlier responses, background, conversations."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from http_svc.answers import Answer, Events, as_json, event, whole_json
from http_svc.bodies import Body, Items
from http_svc.content import image
from http_svc.errors import openai
from http_svc.forms import Kind, Schema, put_form
from http_svc.openai.chat import joined
from http_svc.refusals import refuse
from http_svc.sampling import NewTokens
from http_svc.services import Services
from ml import transformers_pb2 as pb
from shared.errors import MissingFieldError, ServiceError


class TextPart(Body):
    """Text of a caller, or of an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: str


class RefusalPart(Body):
    """What an assistant said when it refused."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(Body):
    """A picture as a data URL."""

    type: Literal["input_image"]
    image_url: str


Part = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]


class Item(Body):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Items[Part]


class Format(Body):
    """The form of the answer."""

    type: Kind
    name: str | None = None
    json_schema: Schema | None = Field(None, alias="schema")


class TextOptions(Body):
    """How the answer is written."""

    format: Format | None = None


class ResponseBody(Body):
    """A request of /v1/responses."""

    model: str
    input: str | Items[Item]
    instructions: str | None = None
    max_output_tokens: NewTokens | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = None
    text: TextOptions | None = None
    tools: Items[JsonValue] | None = None
    tool_choice: JsonValue = None
    previous_response_id: str | None = None
    conversation: JsonValue = None
    prompt: JsonValue = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    include: Items[str] | None = None
    max_tool_calls: int | None = None


async def respond(body: ResponseBody, services: Services) -> Answer:
    """Generates the answer to a conversation. Nothing is stored.

    Raises:
        InvalidArgumentError: a field asks for something that is not supported.
    """
    responses = services.chat(_request(body))
    made = _Response(body)
    if body.stream:
        return Events(made.events(responses))
    text, last = await joined(responses)
    return whole_json(made.ended(text, last))


class _Response:
    """One response while it is made."""

    def __init__(self, body: ResponseBody) -> None:
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._sequence = 0
        self._fields: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "incomplete_details": None,
            "model": body.model,
            "previous_response_id": None,
            "instructions": body.instructions,
            "output": [],
            "error": None,
            "tools": [],
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": _format(body).model_dump(by_alias=True, exclude_none=True)},
            # What was not sent is the model's own default; the field has to be a number.
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "presence_penalty": body.presence_penalty or 0.0,
            "frequency_penalty": body.frequency_penalty or 0.0,
            "top_logprobs": 0,
            "reasoning": {"effort": None, "summary": None},
            "usage": None,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": body.metadata or {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }

    def ended(self, text: str, last: pb.ChatResponse) -> dict[str, Any]:
        """The whole response."""
        cut = last.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        return self._fields | {
            "status": status,
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._message(status, [_part(text)])],
            "usage": _usage(last.usage),
        }

    async def events(
        self, responses: AsyncGenerator[pb.ChatResponse, None]
    ) -> AsyncGenerator[bytes, None]:
        """The response as a stream of events."""
        place = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        first = self._event("response.created", response=self._fields)
        first += self._event("response.in_progress", response=self._fields)
        item = self._message("in_progress", [])
        first += self._event("response.output_item.added", output_index=0, item=item)
        first += self._event("response.content_part.added", **place, part=_part(""))
        texts: list[str] = []
        try:
            async with aclosing(responses):
                async for response in responses:
                    piece, first = first, b""
                    if response.content:
                        texts.append(response.content)
                        piece += self._event(
                            "response.output_text.delta",
                            **place,
                            delta=response.content,
                            logprobs=[],
                        )
                    if response.done:
                        piece += self._end("".join(texts), response, place)
                    if piece:
                        yield piece
        except ServiceError as error:
            if first:  # nothing has been sent: the error has a status
                raise
            yield self._event("error", **openai(error)["error"])

    def _end(self, text: str, last: pb.ChatResponse, place: dict[str, Any]) -> bytes:
        whole = self.ended(text, last)
        (item,) = whole["output"]
        return b"".join(
            (
                self._event("response.output_text.done", **place, text=text, logprobs=[]),
                self._event("response.content_part.done", **place, part=_part(text)),
                self._event("response.output_item.done", output_index=0, item=item),
                self._event(f"response.{whole['status']}", response=whole),
            )
        )

    def _message(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {**fields, "type": kind, "sequence_number": self._sequence}
        self._sequence += 1
        return event(as_json(data), kind)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: pb.GenerationUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
    }


def _format(body: ResponseBody) -> Format:
    return (body.text and body.text.format) or Format(type="text")


def _request(body: ResponseBody) -> pb.ChatRequest:
    nothing_stored = "responses are not stored"
    logprobs = "message.output_text.logprobs" in (body.include or ())
    refuse(
        [
            ("tools", body.tools and body.tool_choice != "none", "tools are not supported"),
            ("previous_response_id", body.previous_response_id, nothing_stored),
            ("conversation", body.conversation, nothing_stored),
            ("prompt", body.prompt, "stored prompts are not supported"),
            ("background", body.background, nothing_stored),
            ("truncation", body.truncation == "auto", "only disabled is supported"),
            ("top_logprobs", body.top_logprobs, "log-probabilities are not supported"),
            ("include", logprobs, "log-probabilities are not supported"),
        ]
    )
    request = pb.ChatRequest(model=body.model, max_tokens=body.max_output_tokens or 0)
    if body.temperature is not None:
        request.temperature = body.temperature
    if body.top_p is not None:
        request.top_p = body.top_p
    if body.frequency_penalty:
        request.frequency_penalty = body.frequency_penalty
    if body.presence_penalty:
        request.presence_penalty = body.presence_penalty
    form = _format(body)
    put_form(request, form.type, form.json_schema, "text.format.schema")
    if body.instructions:
        request.messages.add(role="system", content=body.instructions)
    if not body.input:
        raise MissingFieldError("input is empty", field="input")
    if isinstance(body.input, str):
        request.messages.add(role="user", content=body.input)
        return request
    for index, item in enumerate(body.input):
        role = "system" if item.role == "developer" else item.role
        _put(request.messages.add(role=role), item, f"input[{index}]")
    return request


def _put(made: pb.ChatMessage, item: Item, field: str) -> None:
    if isinstance(item.content, str):
        made.content = item.content
        return
    texts = []
    for index, part in enumerate(item.content):
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, RefusalPart):
            texts.append(part.refusal)
        else:
            made.images.append(image(part.image_url, f"{field}.content[{index}].image_url"))
    made.content = "\n".join(texts)
