"""/v1/responses, without what would need a memory: earlier responses, background, conversations."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, Literal

from pydantic import Field, JsonValue

from http_svc.answers import Answer, Events, as_json, event, whole_json
from http_svc.blocks import Blocks, Kind, whole
from http_svc.bodies import Body, Items
from http_svc.errors import openai
from http_svc.forms import Kind as Form
from http_svc.forms import Schema, put_form
from http_svc.openai.response_items import Item, OutputItem, put_items
from http_svc.refusals import refuse
from http_svc.sampling import NewTokens
from http_svc.services import Services
from http_svc.tools import Function, put_choice, put_function
from ml import transformers_pb2 as pb
from shared.errors import MissingFieldError, ServiceError


class FunctionTool(Function):
    """A function that the model may call."""

    type: Literal["function"]


class NamedTool(Body):
    """The function that the model must call."""

    type: Literal["function"]
    name: str


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class ReasoningOptions(Body):
    """How the model reasons; its being there asks for reasoning as items of their own."""

    effort: str | None = None


class Format(Body):
    """The form of the answer."""

    type: Form
    name: str | None = None
    json_schema: Schema | None = Field(None, alias="schema")


class TextOptions(Body):
    """How the answer is written."""

    format: Format | None = None


class Conversation(Body):
    """What the tokens of a prompt depend on."""

    model: str
    input: str | Items[Item]
    instructions: str | None = None
    tools: Items[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: JsonValue = None
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: ReasoningOptions | None = None

    def request(self) -> pb.ChatRequest:
        """The request of its answer.

        Raises:
            InvalidArgumentError: a field asks for something that is not supported.
        """
        refuse(
            [
                ("previous_response_id", self.previous_response_id, _NOTHING_STORED),
                ("conversation", self.conversation, _NOTHING_STORED),
                ("truncation", self.truncation == "auto", "only disabled is supported"),
            ]
        )
        request = pb.ChatRequest(model=self.model, separate_reasoning=self.reasoning is not None)
        if self.instructions:
            request.messages.add(role="system", content=self.instructions)
        if not self.input:
            raise MissingFieldError("input is empty", field="input")
        if isinstance(self.input, str):
            request.messages.add(role="user", content=self.input)
        else:
            put_items(request, self.input)
        choice = self.tool_choice
        if choice == "none":
            return request
        for tool in self.tools or ():
            put_function(request, tool)
        put_choice(
            request,
            None if isinstance(choice, NamedTool) else choice,
            choice.name if isinstance(choice, NamedTool) else "",
            self.parallel_tool_calls,
        )
        return request


class ResponseBody(Conversation):
    """A request of /v1/responses."""

    max_output_tokens: NewTokens | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = None
    text: TextOptions | None = None
    prompt: JsonValue = None
    background: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    include: Items[str] | None = None
    max_tool_calls: int | None = None


_NOTHING_STORED = "responses are not stored"


async def respond(body: ResponseBody, services: Services) -> Answer:
    """Generates the answer to a conversation. Nothing is stored.

    Raises:
        InvalidArgumentError: a field asks for something that is not supported.
    """
    responses = services.chat(_request(body))
    made = _Response(body)
    if body.stream:
        return Events(made.events(responses))
    blocks, last = await whole(responses)
    return whole_json(made.ended([OutputItem(block) for block in blocks], last))


async def count_tokens(body: Conversation, services: Services) -> Answer:
    """Counts the tokens of a conversation, as `respond` would read it.

    Raises:
        InvalidArgumentError: a field asks for something that is not supported.
    """
    tokens = await services.count_tokens(body.request())
    return whole_json({"object": "response.input_tokens", "input_tokens": tokens})


class _Response:
    """One response while it is made."""

    def __init__(self, body: ResponseBody) -> None:
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
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "tool_choice": _choice(body.tool_choice),
            "truncation": "disabled",
            "parallel_tool_calls": body.parallel_tool_calls is not False,
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

    def ended(self, items: Iterable[OutputItem], last: pb.ChatResponse) -> dict[str, Any]:
        """The whole response."""
        cut = last.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        return self._fields | {
            "status": status,
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": _ended(items, status),
            "usage": _usage(last.usage),
        }

    async def events(
        self, responses: AsyncGenerator[pb.ChatResponse, None]
    ) -> AsyncGenerator[bytes, None]:
        """The response as a stream of events."""
        first = self._event("response.created", response=self._fields)
        first += self._event("response.in_progress", response=self._fields)
        blocks = Blocks()
        items: list[OutputItem] = []
        try:
            async with aclosing(responses):
                async for response in responses:
                    piece, first = first, b""
                    cut = response.finish_reason == "length"
                    for step in blocks.steps(response):
                        if step.what == "begin":
                            items.append(OutputItem(step.block))
                            piece += self._begin(items[-1])
                        elif step.what == "end":
                            piece += self._end(items[-1], "incomplete" if cut else "completed")
                        else:
                            piece += self._delta(items[-1], step.text)
                    if response.done:
                        ended = self.ended(items, response)
                        piece += self._event(f"response.{ended['status']}", response=ended)
                    if piece:
                        yield piece
        except ServiceError as error:
            if first:  # nothing has been sent: the error has a status
                raise
            yield self._event("error", **openai(error)["error"])

    def _begin(self, item: OutputItem) -> bytes:
        index = item.block.index
        fields = item.fields("in_progress")
        piece = self._event("response.output_item.added", output_index=index, item=fields)
        if item.block.kind != "call":
            part = item.part("")
            piece += self._event("response.content_part.added", **item.place, part=part)
        return piece

    def _delta(self, item: OutputItem, text: str) -> bytes:
        kind, logprobs = _EVENTS[item.block.kind]
        return self._event(f"{kind}.delta", **item.place, delta=text, **logprobs)

    def _end(self, item: OutputItem, status: str) -> bytes:
        block, (kind, logprobs) = item.block, _EVENTS[item.block.kind]
        text = {"arguments" if block.kind == "call" else "text": block.text}
        if block.kind == "call":
            text["name"] = block.name
        piece = self._event(f"{kind}.done", **item.place, **text, **logprobs)
        if block.kind != "call":
            part = item.part(block.text)
            piece += self._event("response.content_part.done", **item.place, part=part)
        fields = item.fields(status)
        return piece + self._event(
            "response.output_item.done", output_index=block.index, item=fields
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {**fields, "type": kind, "sequence_number": self._sequence}
        self._sequence += 1
        return event(as_json(data), kind)


# What the events of a block's text are called, and what they have beside it.
_EVENTS: dict[Kind, tuple[str, dict[str, Any]]] = {
    "reasoning": ("response.reasoning_text", {}),
    "text": ("response.output_text", {"logprobs": []}),
    "call": ("response.function_call_arguments", {}),
}


def _ended(items: Iterable[OutputItem], status: str) -> list[dict[str, Any]]:
    """Items of an answer, of which the limit of tokens cuts the last one alone."""
    made = [item.fields("completed") for item in items]
    if made:
        made[-1]["status"] = status
    return made


def _choice(choice: ToolChoice | None) -> Any:
    return choice.model_dump() if isinstance(choice, NamedTool) else choice or "auto"


def _usage(usage: pb.GenerationUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
    }


def _format(body: ResponseBody) -> Format:
    return (body.text and body.text.format) or Format(type="text")


def _request(body: ResponseBody) -> pb.ChatRequest:
    logprobs = "message.output_text.logprobs" in (body.include or ())
    refuse(
        [
            ("prompt", body.prompt, "stored prompts are not supported"),
            ("background", body.background, _NOTHING_STORED),
            ("top_logprobs", body.top_logprobs, "log-probabilities are not supported"),
            ("include", logprobs, "log-probabilities are not supported"),
        ]
    )
    request = body.request()
    request.max_tokens = body.max_output_tokens or 0
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
    return request
