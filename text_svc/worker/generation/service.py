"""GenerateText and ChatCompletion: from requests to prompts, from deltas to responses."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ml import transformers_pb2 as pb
from text_svc.link.server import Handlers
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.answers.pieces import Piece
from text_svc.worker.checks import check_sizes, refuse_media
from text_svc.worker.engines.sampling import SamplingRequest
from text_svc.worker.generation.chat import Chat, ChatModel
from text_svc.worker.generation.generator import (
    Prompt,
    TextGenerator,
    Usage,
)
from text_svc.worker.generation.messages import check_messages
from text_svc.worker.generation.tools import texts_of


class GenerationHandlers:
    """GenerateText and ChatCompletion."""

    def __init__(self, generator: TextGenerator, spec: WorkerSpec) -> None:
        self._generator = generator
        self._max_bytes = spec.max_prompt_bytes
        self._pipeline = spec.pipeline
        tokenizer = generator.tokenizer
        self.chat_model = ChatModel(
            tokenizer.chat_template, tokenizer.has_token, spec.options.tool_format
        )

    def table(self) -> Handlers:
        """The handlers by the names of their RPCs."""
        return {"GenerateText": self.generate_text, "ChatCompletion": self.chat_completion}

    async def generate_text(self, request: pb.TextRequest) -> AsyncGenerator[pb.TextResponse, None]:
        """A stream of text; the last response has `done`, and no text."""
        check_sizes([request.prompt], "prompt", self._max_bytes)
        sampling = self._generator.defaults.complete(_sampling_request(request, "max_length"))
        with self._generator.preparing():
            prompt = await self.read_text(request)
        generation = self._generator.generate(prompt.ids, sampling, prompt.inputs)
        async with aclosing(generation) as deltas:
            async for delta in deltas:
                if delta.text:
                    yield pb.TextResponse(text=delta.text, tokens_generated=delta.tokens_generated)
        yield pb.TextResponse(
            done=True,
            tokens_generated=delta.tokens_generated,
            finish_reason=delta.finish_reason,
            usage=_usage(delta.usage),
        )

    async def chat_completion(
        self, request: pb.ChatRequest
    ) -> AsyncGenerator[pb.ChatResponse, None]:
        """The same for a conversation."""
        check_messages([message.role for message in request.messages])
        check_sizes(list(texts_of(request)), "messages", self._max_bytes, empty=True)
        sampling = self._generator.defaults.complete(_sampling_request(request, "max_tokens"))
        with self._generator.preparing():
            prompt = await self.read_chat(request)
        answer = prompt.answer() if prompt.answer else None
        generation = self._generator.generate(prompt.ids, sampling, prompt.inputs, answer)
        async with aclosing(generation) as deltas:
            async for delta in deltas:
                if answer is None and delta.text:
                    yield pb.ChatResponse(content=delta.text)
                for piece in delta.pieces:
                    yield _piece(piece)
        yield pb.ChatResponse(
            done=True, finish_reason=delta.finish_reason, usage=_usage(delta.usage)
        )

    async def read_text(self, request: pb.TextRequest) -> Prompt:
        """Reads the prompt of a request whose text is within the limits."""
        refuse_media(request, self._pipeline)
        return Prompt(await self._generator.encode(request.prompt))

    async def read_chat(self, request: pb.ChatRequest) -> Prompt:
        """Reads the messages of a request whose texts are within the limits."""
        chat = self.chat(request)
        ids = await self._generator.encode_rendered(await chat.render(self._generator.render))
        return Prompt(ids, answer=chat.answer)

    def chat(self, request: pb.ChatRequest) -> Chat:
        """The conversation of a request, which may have texts alone."""
        for index, message in enumerate(request.messages):
            refuse_media(message, self._pipeline, f"messages[{index}].")
        return self.chat_model.read(request)


def _sampling_request(
    request: pb.TextRequest | pb.ChatRequest, new_tokens_field: str
) -> SamplingRequest:
    def optional(name: str) -> Any:
        return getattr(request, name) if request.HasField(name) else None

    return SamplingRequest(
        temperature=optional("temperature"),
        top_p=optional("top_p"),
        top_k=optional("top_k"),
        repetition_penalty=optional("repetition_penalty"),
        seed=optional("seed"),
        stop=request.stop,
        max_new_tokens=getattr(request, new_tokens_field),
        max_new_tokens_field=new_tokens_field,
    )


def _piece(piece: Piece) -> pb.ChatResponse:
    call = piece.call
    return pb.ChatResponse(
        content=piece.content,
        reasoning=piece.reasoning,
        tool_calls=[
            pb.ToolCallDelta(index=call.index, id=call.id, name=call.name, arguments=call.arguments)
        ]
        if call
        else [],
    )


def _usage(usage: Usage | None) -> pb.GenerationUsage | None:
    if usage is None:
        return None
    return pb.GenerationUsage(
        prompt_tokens=usage.prompt_tokens,
        generated_tokens=usage.generated_tokens,
        queue_seconds=usage.queue_seconds,
        first_token_seconds=usage.first_token_seconds,
        reasoning_tokens=usage.reasoning_tokens,
    )
