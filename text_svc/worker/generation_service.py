"""GenerateText and ChatCompletion of one model: checks the request, runs it, shapes the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc
from text_svc.launch import Launch
from text_svc.worker.chat import check_messages
from text_svc.worker.checks import check_sizes
from text_svc.worker.engine import GenerationEngine


class GenerationServicer(transformers_pb2_grpc.TransformersServiceServicer):
    """GenerateText and ChatCompletion."""

    def __init__(self, engine: GenerationEngine, launch: Launch) -> None:
        self._engine = engine
        self._max_bytes = launch.max_prompt_bytes

    async def GenerateText(
        self, request: pb.TextRequest, context: Any
    ) -> AsyncIterator[pb.TextResponse]:
        check_sizes([request.prompt], "prompt", self._max_bytes)
        sampling = self._engine.defaults.complete(
            optional(request, "temperature"), optional(request, "top_p"), request.max_length
        )
        prompt = await asyncio.to_thread(self._engine.encode, request.prompt)
        async with aclosing(self._engine.generate(prompt, sampling)) as deltas:
            async for delta in deltas:
                if delta.text:
                    yield pb.TextResponse(text=delta.text, tokens_generated=delta.tokens_generated)
        yield pb.TextResponse(done=True, tokens_generated=delta.tokens_generated)

    async def ChatCompletion(
        self, request: pb.ChatRequest, context: Any
    ) -> AsyncIterator[pb.ChatResponse]:
        messages = check_messages([(m.role, m.content) for m in request.messages])
        check_sizes([m["content"] for m in messages], "messages", self._max_bytes, empty=True)
        sampling = self._engine.defaults.complete(optional(request, "temperature"), None, 0)
        prompt = await asyncio.to_thread(self._engine.encode_chat, messages)
        async with aclosing(self._engine.generate(prompt, sampling)) as deltas:
            async for delta in deltas:
                if delta.text:
                    yield pb.ChatResponse(content=delta.text)
        yield pb.ChatResponse(done=True, finish_reason=delta.finish_reason)


def optional(request: Any, name: str) -> float | None:
    """A field with presence: None when the client did not set it."""
    return getattr(request, name) if request.HasField(name) else None
