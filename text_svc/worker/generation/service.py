"""GenerateText and ChatCompletion: from requests to prompts, from deltas to responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.link.server import Handlers
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.answers.pieces import Piece
from text_svc.worker.checks import check_sizes, refuse_media
from text_svc.worker.engines.base import TokenScore
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.sampling import Sampling, SamplingRequest
from text_svc.worker.generation.answers import check_answers, several
from text_svc.worker.generation.chat import Chat, ChatModel
from text_svc.worker.generation.generator import (
    Delta,
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
            tokenizer.chat_template,
            tokenizer.has_token,
            spec.options.tool_format,
            forces=generator.has("response_format"),
        )

    def table(self) -> Handlers:
        """The handlers by the names of their RPCs."""
        return {
            "GenerateText": self.generate_text,
            "ChatCompletion": self.chat_completion,
            "TokenCount": self.token_count,
        }

    async def generate_text(self, request: pb.TextRequest) -> AsyncGenerator[pb.TextResponse, None]:
        """A stream of text; the last response has `done`, and no text."""
        check_sizes([request.prompt], "prompt", self._max_bytes)
        if request.echo or request.prompt_only:
            name = "echo" if request.echo else "prompt_only"
            raise InvalidArgumentError(f"{name} cannot be used: no engine has it", field=name)
        sampling = self._generator.defaults.complete(_sampling_request(request, "max_length"))
        check_answers(request.n)
        with self._generator.preparing():
            prompt = await self.read_text(request)
        async with aclosing(self._answers(prompt, sampling, request.n)) as deltas:
            async for index, delta in deltas:
                if delta.text or delta.scores:
                    yield pb.TextResponse(
                        text=delta.text,
                        tokens_generated=delta.tokens_generated,
                        index=index,
                        logprobs=self._logprobs(delta.scores),
                    )
                if delta.finish_reason:
                    yield pb.TextResponse(
                        done=delta.usage is not None,
                        tokens_generated=delta.tokens_generated,
                        finish_reason=delta.finish_reason,
                        usage=_usage(delta.usage),
                        index=index,
                    )

    async def chat_completion(
        self, request: pb.ChatRequest
    ) -> AsyncGenerator[pb.ChatResponse, None]:
        """The same for a conversation."""
        self._check_chat(request)
        sampling = self._generator.defaults.complete(_sampling_request(request, "max_tokens"))
        check_answers(request.n)
        with self._generator.preparing():
            prompt = await self.read_chat(request)
        if sampling.response_format:
            if request.tools and request.tool_choice != "none":
                raise InvalidArgumentError(
                    "response_format cannot be used with tools, since a call has a form of its own",
                    field="response_format",
                )
            prompt = replace(prompt, answer=None)  # the answer is in the form as a whole
        if prompt.calls:
            sampling = sampling.in_form(prompt.calls)
            if request.tool_name or request.tool_choice == "required":
                # A form says itself where the answer ends.
                sampling = replace(sampling, stop=tuple(request.stop))
        async with aclosing(self._answers(prompt, sampling, request.n)) as deltas:
            async for index, delta in deltas:
                for response in self._chat_responses(delta, taken_apart=prompt.answer is not None):
                    response.index = index
                    yield response
                if delta.finish_reason:
                    yield pb.ChatResponse(
                        done=delta.usage is not None,
                        finish_reason=delta.finish_reason,
                        usage=_usage(delta.usage),
                        index=index,
                    )

    async def token_count(self, request: pb.TokenCountRequest) -> pb.TokenCountResponse:
        """The tokens of a text or a conversation.

        Raises:
            MissingFieldError: there is neither.
            InvalidArgumentError: there are both.
            Others: as the call that would read them.
        """
        if request.messages and request.text:
            raise InvalidArgumentError("text and messages cannot be sent together", field="text")
        if request.text:
            check_sizes([request.text], "text", self._max_bytes)
            prompt = await self.read_text(pb.TextRequest(prompt=request.text))
        else:
            think = request.think if request.HasField("think") else None
            chat = pb.ChatRequest(messages=request.messages, tools=request.tools, think=think)
            for tool in chat.tools:
                tool.strict = False  # there is no answer that could be forced
            self._check_chat(chat)
            prompt = await self.read_chat(chat)
        return pb.TokenCountResponse(tokens=len(prompt.ids), context=self._generator.context)

    async def read_text(self, request: pb.TextRequest) -> Prompt:
        """Reads the prompt of a request whose text is within the limits."""
        refuse_media(request, self._pipeline)
        return Prompt(await self._generator.encode(request.prompt))

    async def read_chat(self, request: pb.ChatRequest) -> Prompt:
        """Reads the messages of a request whose texts are within the limits."""
        chat = self.chat(request)
        ids = await self._generator.encode_rendered(await chat.render(self._generator.render))
        # A form of many tools takes a while.
        calls = await asyncio.to_thread(chat.calls) if chat.forced else None
        return Prompt(ids, answer=chat.answer, calls=calls)

    def _chat_responses(self, delta: Delta, *, taken_apart: bool) -> Iterable[pb.ChatResponse]:
        if taken_apart:
            responses = [_piece(piece) for piece in delta.pieces]
        else:
            responses = [pb.ChatResponse(content=delta.text)] if delta.text else []
        if delta.scores:
            responses = responses or [pb.ChatResponse()]
            responses[0].logprobs.extend(self._logprobs(delta.scores))
        return responses

    def _check_chat(self, request: pb.ChatRequest) -> None:
        check_messages([message.role for message in request.messages])
        check_sizes(list(texts_of(request)), "messages", self._max_bytes, empty=True)

    def _answers(
        self, prompt: Prompt, sampling: Sampling, number: int
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        """The deltas of a request's answers with their indices; the last one alone has usage."""
        if number <= 1:
            answer = prompt.answer() if prompt.answer else None
            return _one(self._generator.generate(prompt.ids, sampling, prompt.inputs, answer))
        return several(self._generator, prompt, sampling, number)

    def _logprobs(self, scores: Sequence[TokenScore]) -> Sequence[pb.TokenLogprob]:
        if not scores:
            return ()
        return [
            self._logprob(score.token, score.logprob, [self._logprob(*each) for each in score.top])
            for score in scores
        ]

    def _logprob(
        self, token: int, logprob: float, top: Iterable[pb.TokenLogprob] = ()
    ) -> pb.TokenLogprob:
        text, utf8 = self._generator.tokenizer.token(token)
        return pb.TokenLogprob(token_id=token, text=text, utf8=utf8, logprob=logprob, top=top)

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
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        min_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        logit_bias=dict(request.logit_bias),
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
        response_format=_form(request.response_format)
        if request.HasField("response_format")
        else None,
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


def _form(wanted: pb.ResponseFormat) -> Form | None:
    kind = wanted.WhichOneof("kind")
    match kind:
        case "json_object":
            return Form.json_object() if wanted.json_object else None
        case "choice":
            return Form.choice(wanted.choice.texts)
        case "json_schema" | "regex" | "grammar":
            return Form(kind, getattr(wanted, kind))
    raise InvalidArgumentError(
        "response_format must be one of json_object, json_schema, regex, grammar, choice",
        field="response_format",
    )


async def _one(deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[tuple[int, Delta], None]:
    async with aclosing(deltas):
        async for delta in deltas:
            yield 0, delta


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
