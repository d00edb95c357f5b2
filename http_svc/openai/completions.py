"""/v1/completions."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic import Field, StrictInt

from http_svc.answers import DONE, Answer, Events, as_json, event, whole_json
from http_svc.bodies import Items
from http_svc.openai.chat import StreamOptions, usage_of
from http_svc.refusals import refuse
from http_svc.sampling import NewTokens, Sampling
from http_svc.services import Services
from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, MissingFieldError


class CompletionBody(Sampling):
    """A request of /v1/completions."""

    model: str
    prompt: str | Items[str] | Items[StrictInt] | Items[Items[StrictInt]]
    max_tokens: NewTokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    best_of: int | None = Field(None, ge=0, le=128)
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = Field(None, ge=0, le=20)


async def complete(body: CompletionBody, services: Services) -> Answer:
    """Continues one prompt, or several at once.

    Raises:
        InvalidArgumentError: a field asks for something that is not supported.
    """
    requests = _requests(body, services.settings.max_prompts)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
    }
    streams = [services.generate(request) for request in requests]
    prefixes = _prompts(body) if body.echo else [""] * len(requests)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return Events(_chunks(streams, prefixes, head, include_usage=usage))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_joined(stream)) for stream in streams]
    choices, total = [], pb.GenerationUsage()
    for index, task in enumerate(tasks):
        text, last = task.result()
        _add(total, last.usage)
        choices.append(_choice(index, prefixes[index] + text, last.finish_reason or "stop"))
    return whole_json(head | {"choices": choices, "usage": usage_of(total)})


def _choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _add(total: pb.GenerationUsage, usage: pb.GenerationUsage) -> None:
    total.prompt_tokens += usage.prompt_tokens
    total.generated_tokens += usage.generated_tokens


async def _joined(responses: AsyncGenerator[pb.TextResponse, None]) -> tuple[str, pb.TextResponse]:
    texts, last = [], pb.TextResponse()
    async for last in responses:
        texts.append(last.text)
    return "".join(texts), last


async def _chunks(
    streams: list[AsyncGenerator[pb.TextResponse, None]],
    prefixes: list[str],
    head: dict[str, Any],
    *,
    include_usage: bool,
) -> AsyncGenerator[bytes, None]:
    def chunk(index: int, text: str, finish: str | None = None) -> bytes:
        made = head | {"choices": [_choice(index, text, finish)]}
        return event(as_json(made | {"usage": None} if include_usage else made))

    mark = "\N{OBJECT REPLACEMENT CHARACTER}"
    parts = [chunk(index, mark).rsplit(as_json(mark), 1) for index in range(len(streams))]
    total, left, started = pb.GenerationUsage(), len(streams), [False] * len(streams)
    async with aclosing(_merged(streams)) as merged:
        async for index, response in merged:
            text, piece = response.text, b""
            if not started[index]:
                text, started[index] = prefixes[index] + text, True
            if text:
                before, after = parts[index]
                piece = before + json.dumps(text).encode() + after
            if response.done:
                piece += chunk(index, "", response.finish_reason or "stop")
                _add(total, response.usage)
                left -= 1
                if not left:
                    if include_usage:
                        piece += event(as_json(head | {"choices": [], "usage": usage_of(total)}))
                    piece += DONE
            if piece:
                yield piece


async def _merged(
    streams: list[AsyncGenerator[pb.TextResponse, None]],
) -> AsyncGenerator[tuple[int, pb.TextResponse], None]:
    """The messages of all streams as they come, each with the index of its stream."""
    if len(streams) == 1:
        async with aclosing(streams[0]):
            async for response in streams[0]:
                yield 0, response
        return
    came: asyncio.Queue[tuple[int, pb.TextResponse] | Exception | None] = asyncio.Queue(
        2 * len(streams)
    )

    async def read(index: int) -> None:
        try:
            async with aclosing(streams[index]):
                async for response in streams[index]:
                    await came.put((index, response))
            await came.put(None)
        except Exception as error:  # noqa: BLE001  # raised below
            await came.put(error)

    tasks = [asyncio.create_task(read(index)) for index in range(len(streams))]
    try:
        left = len(streams)
        while left:
            item = await came.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _prompts(body: CompletionBody) -> list[str]:
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not prompts:
        raise MissingFieldError("prompt is empty", field="prompt")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) != len(prompts):
        raise InvalidArgumentError(
            "prompt: token ids are not supported; send the text", field="prompt"
        )
    return texts


def _requests(body: CompletionBody, limit: int) -> list[pb.TextRequest]:
    refuse(
        [
            ("n", (body.n or 1) > 1, "more than one answer is not supported"),
            ("best_of", (body.best_of or 1) > 1, "more than one answer is not supported"),
            ("suffix", body.suffix, "it is not supported"),
            ("logprobs", body.logprobs is not None, "log-probabilities are not supported"),
        ]
    )
    prompts = _prompts(body)
    if len(prompts) > limit:
        raise InvalidArgumentError(
            f"prompt has {len(prompts)} prompts; the limit is {limit}", field="prompt"
        )
    requests = []
    for prompt in prompts:
        request = pb.TextRequest(
            model=body.model, prompt=prompt, max_length=body.max_tokens or DEFAULT_NEW_TOKENS
        )
        body.put(request)
        requests.append(request)
    return requests


# OpenAI's own default of this endpoint.
DEFAULT_NEW_TOKENS = 16
