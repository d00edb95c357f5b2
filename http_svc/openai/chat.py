"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from http_svc.answers import DONE, Answer, Events, Whole, as_json, event, whole_json
from http_svc.bodies import Body, Items
from http_svc.content import decoded, image
from http_svc.forms import Kind, Schema, put_form
from http_svc.openai.logprobs import logprobs_of
from http_svc.openai.tools import (
    Tool,
    ToolCall,
    ToolChoice,
    add_delta,
    delta_of,
    put_calls,
    put_tools,
)
from http_svc.refusals import refuse
from http_svc.sampling import NewTokens, Sampling
from http_svc.services import Services
from ml import transformers_pb2 as pb
from shared.errors import MissingFieldError, OutOfRangeError

# Each takes half a KiB until it is sent, of an answer in one piece.
MAX_LOGPROBS = 100_000
# What is written as JSON on the event loop; more is written in a thread.
_INLINE_LOGPROBS = 1000


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
    content: str | Items[Part] | None = None
    tool_calls: Items[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    function_call: JsonValue = None


class StreamOptions(Body):
    """What a stream has beside the answer."""

    include_usage: bool | None = None


class JsonSchema(Body):
    """What an answer in JSON must fit."""

    json_schema: Schema | None = Field(None, alias="schema")


class ResponseFormat(Body):
    """The form of the answer."""

    type: Kind
    json_schema: JsonSchema | None = None


class ChatBody(Sampling):
    """A request of /v1/chat/completions."""

    model: str
    messages: Items[Message]
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Items[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    separate_reasoning: bool | None = None
    think: bool | None = None
    functions: Items[JsonValue] | None = None
    modalities: Items[str] | None = None
    web_search_options: JsonValue = None


async def chat(body: ChatBody, services: Services) -> Answer:
    """Generates the next message of a conversation.

    Raises:
        InvalidArgumentError: a field asks for something that is not supported, or for more
            log-probabilities than an answer in one piece may have.
    """
    request = _request(body)
    head = _Head("chatcmpl", body.model)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return Events(_chunks(services.chat(request), head, include_usage=usage))
    answers = [_Answer() for _ in range(body.n or 1)]
    last, logprobs = pb.ChatResponse(), 0
    async with aclosing(services.chat(request)) as responses:
        async for last in responses:
            answers[last.index].add(last)
            logprobs += sum(1 + len(token.top) for token in last.logprobs)
            if logprobs > MAX_LOGPROBS:
                raise OutOfRangeError(
                    f"the answer has more than {MAX_LOGPROBS} log-probabilities, which is the "
                    "limit without stream",
                    field="logprobs",
                )

    def whole() -> Whole:
        choices = [
            answer.choice(index, logprobs=bool(body.logprobs))
            for index, answer in enumerate(answers)
        ]
        return whole_json(head.object("chat.completion", choices) | {"usage": usage_of(last.usage)})

    return whole() if logprobs <= _INLINE_LOGPROBS else await asyncio.to_thread(whole)


class _Answer:
    """One answer in one piece, from its messages."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._tokens: list[pb.TokenLogprob] = []
        self._finish = "stop"

    def add(self, response: pb.ChatResponse) -> None:
        self._texts.append(response.content)
        self._reasoning.append(response.reasoning)
        self._tokens.extend(response.logprobs)
        for delta in response.tool_calls:
            add_delta(self._calls, delta)
        self._finish = response.finish_reason or self._finish

    def choice(self, index: int, *, logprobs: bool) -> dict[str, Any]:
        text = "".join(self._texts)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text or None if self._calls else text,
            "refusal": None,
            "annotations": [],
        }
        if reasoning := "".join(self._reasoning):
            message["reasoning_content"] = reasoning
        if self._calls:
            message["tool_calls"] = self._calls
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs_of(self._tokens) if logprobs else None,
            "finish_reason": self._finish,
        }


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
    def chunk(
        index: int, delta: dict[str, Any], finish: str | None = None, log: Any = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": log, "finish_reason": finish}
        made = head.object("chat.completion.chunk", [choice])
        return event(as_json(made | {"usage": None} if include_usage else made))

    # Most chunks of a stream differ in their text alone.
    mark = "\N{OBJECT REPLACEMENT CHARACTER}"
    before, after = chunk(0, {"content": mark}).rsplit(as_json(mark), 1)
    begun: set[int] = set()
    async with aclosing(responses):
        async for response in responses:
            index, piece = response.index, b""
            if index not in begun:
                begun.add(index)
                piece = chunk(index, {"role": "assistant", "content": "", "refusal": None})
            if index or response.logprobs or response.tool_calls or response.reasoning:
                delta: dict[str, Any] = {"content": response.content} if response.content else {}
                if response.reasoning:
                    delta["reasoning_content"] = response.reasoning
                if response.tool_calls:
                    delta["tool_calls"] = [delta_of(each) for each in response.tool_calls]
                log = logprobs_of(response.logprobs) if response.logprobs else None
                if delta or log:
                    piece += chunk(index, delta, log=log)
            elif response.content:
                piece += before + json.dumps(response.content).encode() + after
            if response.finish_reason or response.done:
                piece += chunk(index, {}, response.finish_reason or "stop")
            if response.done:
                if include_usage:
                    usage = head.object("chat.completion.chunk", [])
                    piece += event(as_json(usage | {"usage": usage_of(response.usage)}))
                piece += DONE
            if piece:
                yield piece


def _request(body: ChatBody) -> pb.ChatRequest:
    refuse(
        [
            ("functions", body.functions, "functions are not supported; send tools"),
            ("top_logprobs", body.top_logprobs and not body.logprobs, "logprobs must be true"),
            ("web_search_options", body.web_search_options is not None, "nothing is searched"),
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
    if (body.n or 1) > 1:
        request.n = body.n or 1
    if body.logprobs:
        request.logprobs, request.top_logprobs = True, body.top_logprobs or 0
    if form := body.response_format:
        schema = form.json_schema.json_schema if form.json_schema else None
        put_form(request, form.type, schema, "response_format.json_schema.schema")
    if body.separate_reasoning:
        request.separate_reasoning = True
    if body.think is not None:
        request.think = body.think
    put_tools(request, body.tools or (), body.tool_choice, body.parallel_tool_calls)
    for index, message in enumerate(body.messages):
        _put(request.messages.add(), message, f"messages[{index}]")
    if not request.messages:
        raise MissingFieldError("messages is empty", field="messages")
    return request


def _put(made: pb.ChatMessage, message: Message, field: str) -> None:
    refuse(
        [
            (f"{field}.role", message.role == "function", "functions are not supported; use tool"),
            (f"{field}.function_call", message.function_call, "functions are not supported"),
        ]
    )
    made.role = "system" if message.role == "developer" else message.role
    made.tool_call_id = message.tool_call_id or ""
    made.reasoning = message.reasoning_content or ""
    put_calls(made, message.tool_calls or ())
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
