"""/v1/chat/completions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from http_svc.answers import DONE, Answer, Events, as_json, event, whole_json
from http_svc.bodies import Body
from http_svc.content import decoded, image
from http_svc.refusals import refuse
from http_svc.sampling import NewTokens, Sampling
from http_svc.services import Services
from ml import transformers_pb2 as pb
from shared.errors import MissingFieldError


class TextPart(Body):
    """Text."""

    type: Literal["text"]
    text: str


class RefusalPart(Body):
    """What an assistant said when it refused."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Body):
    """A picture as a data URL."""

    url: str


class ImagePart(Body):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class SoundFile(Body):
    """A sound file as base64."""

    data: str
    format: str = ""


class SoundPart(Body):
    """A sound."""

    type: Literal["input_audio"]
    input_audio: SoundFile


Part = Annotated[TextPart | RefusalPart | ImagePart | SoundPart, Field(discriminator="type")]


class Message(Body):
    """A message of the conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[JsonValue] | None = None
    function_call: JsonValue = None


class StreamOptions(Body):
    """What a stream has beside the answer."""

    include_usage: bool | None = None


class JsonSchema(Body):
    """What an answer in JSON must fit."""

    json_schema: dict[str, JsonValue] | None = Field(None, alias="schema")


class ResponseFormat(Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def put(self, request: pb.ChatRequest) -> None:
        """Sets the field of a request."""
        if self.type == "json_object":
            request.response_format.json_object = True
        elif self.type == "json_schema":
            schema = self.json_schema.json_schema if self.json_schema else None
            if schema is None:
                field = "response_format.json_schema.schema"
                raise MissingFieldError(f"{field} is empty", field=field)
            request.response_format.json_schema = json.dumps(schema, ensure_ascii=False)


class ChatBody(Sampling):
    """A request of /v1/chat/completions."""

    model: str
    messages: list[Message]
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[JsonValue] | None = None
    tool_choice: JsonValue = None
    functions: list[JsonValue] | None = None
    modalities: list[str] | None = None


async def chat(body: ChatBody, services: Services) -> Answer:
    """Generates the next message of a conversation.

    Raises:
        InvalidArgumentError: a field asks for something that is not supported.
    """
    request = _request(body)
    head = _Head("chatcmpl", body.model)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return Events(_chunks(services.chat(request), head, include_usage=usage))
    text, last = await joined(services.chat(request))
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text,
        "refusal": None,
        "annotations": [],
    }
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": last.finish_reason or "stop",
    }
    return whole_json(head.object("chat.completion", [choice]) | {"usage": usage_of(last.usage)})


async def joined(responses: AsyncGenerator[pb.ChatResponse, None]) -> tuple[str, pb.ChatResponse]:
    """The whole text of an answer, and its last message."""
    texts, last = [], pb.ChatResponse()
    async for last in responses:
        texts.append(last.content)
    return "".join(texts), last


def usage_of(usage: pb.GenerationUsage) -> dict[str, Any]:
    """Counts of tokens as OpenAI writes them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
    }


class _Head:
    """What all parts of an answer have."""

    def __init__(self, prefix: str, model: str) -> None:
        self._fields = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def object(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {"object": kind, **self._fields, "choices": choices}


async def _chunks(
    responses: AsyncGenerator[pb.ChatResponse, None], head: _Head, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        made = head.object("chat.completion.chunk", [choice])
        return event(as_json(made | {"usage": None} if include_usage else made))

    # The chunks of a stream differ in their text alone.
    mark = "\N{OBJECT REPLACEMENT CHARACTER}"
    before, after = chunk({"content": mark}).split(as_json(mark))
    first = chunk({"role": "assistant", "content": "", "refusal": None})
    async with aclosing(responses):
        async for response in responses:
            piece, first = first, b""
            if response.content:
                piece += before + json.dumps(response.content).encode() + after
            if response.done:
                piece += chunk({}, response.finish_reason or "stop")
                if include_usage:
                    usage = head.object("chat.completion.chunk", [])
                    piece += event(as_json(usage | {"usage": usage_of(response.usage)}))
                piece += DONE
            if piece:
                yield piece


def _request(body: ChatBody) -> pb.ChatRequest:
    refuse(
        [
            ("tools", body.tools and body.tool_choice != "none", "tools are not supported"),
            ("functions", body.functions, "functions are not supported"),
            ("n", (body.n or 1) > 1, "more than one answer is not supported"),
            ("logprobs", body.logprobs, "log-probabilities are not supported"),
            ("top_logprobs", body.top_logprobs, "log-probabilities are not supported"),
            (
                "modalities",
                body.modalities and body.modalities != ["text"],
                "only text is supported",
            ),
        ]
    )
    request = pb.ChatRequest(
        model=body.model, max_tokens=body.max_completion_tokens or body.max_tokens or 0
    )
    body.put(request)
    if body.response_format:
        body.response_format.put(request)
    for index, message in enumerate(body.messages):
        _put(request.messages.add(), message, f"messages[{index}]")
    if not request.messages:
        raise MissingFieldError("messages is empty", field="messages")
    return request


def _put(made: pb.ChatMessage, message: Message, field: str) -> None:
    refuse(
        [
            (f"{field}.role", message.role in ("tool", "function"), "tools are not supported"),
            (f"{field}.tool_calls", message.tool_calls, "tools are not supported"),
            (f"{field}.function_call", message.function_call, "functions are not supported"),
        ]
    )
    made.role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        made.content = message.content
        return
    texts = []
    for index, part in enumerate(message.content or ()):
        place = f"{field}.content[{index}]"
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, RefusalPart):
            texts.append(part.refusal)
        elif isinstance(part, ImagePart):
            made.images.append(image(part.image_url.url, f"{place}.image_url.url"))
        else:
            data = decoded(part.input_audio.data, f"{place}.input_audio.data")
            made.audio.append(pb.AudioData(data=data))
    made.content = "\n".join(texts)
