"""Streams generated text: prompts to tokens, through the engine, and tokens to text."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from shared.caller import caller, priority
from shared.errors import InvalidArgumentError, ServiceError
from shared.places import Places
from text_svc.worker.answers.answer import Answer
from text_svc.worker.answers.pieces import Piece
from text_svc.worker.engines.base import (
    Engine,
    FinishReason,
    Generation,
    StepOutput,
    TokenScore,
)
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import (
    Sampling,
    SamplingDefaults,
)
from text_svc.worker.generation.bursts import Bursts
from text_svc.worker.generation.chat_template import ChatTemplate
from text_svc.worker.generation.stop_strings import StopFilter
from text_svc.worker.tokenizers.base import Detokenizer, Tokenizer
from text_svc.worker.tokenizers.marks import MarkKeeper
from text_svc.worker.tokenizing import PIECE_CHARACTERS, in_thread

# Longer texts are tokenized in a thread, so that they do not block the event loop.
INLINE_CHARACTERS = 4096


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt.

    Attributes:
        ids: of its tokens.
        inputs: what else the engine reads of it, see `Generation.inputs`.
        answer: makes what takes its answer apart; None for an answer that is text alone.
        calls: the form of its answer, if it has calls that are forced.
    """

    ids: list[int]
    inputs: Mapping[str, Any] | None = None
    answer: Callable[[], Answer] | None = None
    calls: Form | None = None


@dataclass(frozen=True)
class Usage:
    """What a generation took. Times are in seconds since it was submitted."""

    prompt_tokens: int
    generated_tokens: int
    queue_seconds: float
    first_token_seconds: float
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Delta:
    """New text of a generation. The last delta has a finish reason and usage, and may have text.

    Attributes:
        pieces: what the text is, of an answer that is taken apart.
        scores: of its tokens, see `StepOutput`.
    """

    text: str
    tokens_generated: int
    finish_reason: FinishReason | Literal["tool_calls"] | None = None
    usage: Usage | None = None
    pieces: Sequence[Piece] = ()
    scores: Sequence[TokenScore] = ()


class TextGenerator:
    """Generates text with one model: its tokenizer, its chat template and its engine."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        defaults: SamplingDefaults,
        metrics: EngineMetrics,
        max_prompt_characters: int,
    ) -> None:
        self.defaults = defaults
        self._metrics = metrics
        self._engine = engine
        self._tokenizer = tokenizer
        self._long_texts = ThreadPoolExecutor(1, "long texts")
        self._marks: dict[tuple[str, ...], dict[int, str]] = {}
        self._template = ChatTemplate(
            tokenizer.chat_template,
            tokenizer.special_tokens,
            max_prompt_characters,
            engine.limits.weights,
        )
        self._bursts = Bursts()
        running, waiting = engine.limits.running, engine.limits.waiting
        self._places = Places(
            running + waiting,
            f"{running} generations run and {waiting} wait, which is the limit",
            weights=engine.limits.weights,
        )

    def preparing(self) -> AbstractContextManager[None]:
        """Marks a call whose prompt is being read; see `Bursts`."""
        return self._bursts.preparing()

    async def encode(self, prompt: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that the model expects."""
        return await self._encode(prompt, special=True)

    async def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation.

        Raises:
            As `ChatTemplate.render_texts`.
        """
        return await self.encode_rendered(await self.render(messages))

    async def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a conversation that has been rendered."""
        # The template writes the special tokens itself.
        return await self._encode(text, special=False)

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        texts: Sequence[str] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        think: bool | None = None,
    ) -> str:
        """A conversation in the model's chat template; see `ChatTemplate.render_texts`."""
        return await self._template.render_texts(messages, texts, tools, think)

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model."""
        return self._tokenizer

    @property
    def context(self) -> int:
        """See `Limits.context`."""
        return self._engine.limits.context

    def has(self, feature: str) -> bool:
        """Whether the engine has one of `sampling.OPTIONAL`."""
        return feature in self._engine.limits.features

    def check_template(self) -> None:
        """Tries the chat template; see `ChatTemplate.check`. Blocks."""
        self._template.check()

    async def generate(
        self,
        prompt: list[int],
        sampling: Sampling,
        inputs: Mapping[str, Any] | None = None,
        answer: Answer | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Generates a text. Closing the async generator stops the work within one step.

        Args:
            prompt: token ids.
            sampling: the checked parameters; `max_new_tokens` is lowered to what fits.
            inputs: see `Prompt`.
            answer: takes the answer apart; it may end the generation.

        Raises:
            InvalidArgumentError: the prompt is empty or does not fit, or the engine does not have
                what the sampling wants.
            QueueFullError: too many generations wait already, or this one has waited and left its
                place to another caller.
        """
        within = self._within_limits(prompt, sampling)
        form = within.response_format
        compiled = await self._engine.compile(form) if form else None
        generation = Generation(prompt, within, inputs, caller(), priority(), compiled)
        begun = time.perf_counter()
        # Where an encoder reads the prompt, the answer does not continue it.
        continued = prompt if self._engine.limits.new_tokens is None else ()
        text = _GenerationText(self._detokenizer(continued, answer), sampling.stop, answer)
        first = last = 0.0
        await self._bursts.together()
        place = self._places.take(generation.caller, partial(self._leave, generation))
        try:
            with self._bursts.running():
                self._engine.submit(generation)
                while True:
                    for output in await generation.take():
                        if output.error:
                            raise output.error
                        now = time.perf_counter()
                        if last:
                            self._metrics.gap(now - last)
                        first, last = first or now, now
                        delta = text.add(output)
                        if delta.finish_reason:
                            usage = Usage(
                                len(prompt),
                                delta.tokens_generated,
                                generation.started - begun,
                                first - begun,
                                text.reasoning_tokens,
                            )
                            yield replace(delta, usage=usage)
                            return
                        yield delta
        finally:
            self._places.free(place)
            self._engine.cancel(generation)

    async def close(self) -> None:
        """Closes the engine and the chat template."""
        await self._template.close()
        await self._engine.close()
        self._long_texts.shutdown(wait=False)

    async def _encode(self, text: str, *, special: bool) -> list[int]:
        if len(text) <= INLINE_CHARACTERS and not self._tokenizer.may_be_slow:
            return self._tokenizer.encode(text, special=special)
        # Several callers' long texts together would take the process over its limit of memory.
        pool = self._long_texts if len(text) > PIECE_CHARACTERS else None
        return await in_thread(pool, self._tokenizer.encode, text, special=special)

    def _detokenizer(self, continued: Sequence[int], answer: Answer | None) -> Detokenizer:
        make = partial(self._tokenizer.detokenizer, continued)
        if answer is None or not answer.marks:
            return make()
        if answer.marks not in self._marks:
            self._marks[answer.marks] = self._tokenizer.special_tokens_in(answer.marks)
        kept = self._marks[answer.marks]
        return MarkKeeper(make, kept) if kept else make()

    def _leave(self, generation: Generation, error: ServiceError) -> bool:
        """Ends a generation that still waits; one that runs goes on."""
        if generation.started:
            return False
        self._engine.cancel(generation)
        generation.put(StepOutput((), 0, error=error))
        return True

    def _within_limits(self, prompt: list[int], sampling: Sampling) -> Sampling:
        limits = self._engine.limits
        if not prompt:
            raise InvalidArgumentError("the prompt is empty", field="prompt")
        if limits.new_tokens is None:
            room, included = limits.context - len(prompt), ", generated tokens included"
        else:
            room, included = limits.new_tokens, ""
        if room < 1 or len(prompt) > limits.context:
            raise InvalidArgumentError(
                f"the prompt has {len(prompt)} tokens; the model's limit is "
                f"{limits.context}{included}",
                field="prompt",
                metadata={"limit": str(limits.context)},
            )
        if sampling.repetition_penalty != 1 and not limits.repetition_penalty:
            raise InvalidArgumentError(
                f"repetition_penalty is {sampling.repetition_penalty:g}; the engine of this model "
                "has none, so it must be 1 or absent",
                field="repetition_penalty",
            )
        if (wanted := sampling.wanted) and not limits.features.issuperset(wanted):
            name = next(name for name in wanted if name not in limits.features)
            raise InvalidArgumentError(
                f"{name} cannot be used with this model, since its engine does not have it; of "
                f"such options it has {', '.join(sorted(limits.features)) or 'none'}",
                field=name,
            )
        for token in sampling.logit_bias:
            if not 0 <= token < limits.vocabulary:
                raise InvalidArgumentError(
                    f"logit_bias has token {token}; the vocabulary has {limits.vocabulary} tokens",
                    field="logit_bias",
                )
        return replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))


class _GenerationText:
    """The text of one generation, step by step, and what it is made of.

    Attributes:
        reasoning_tokens: how many tokens have been reasoning.
    """

    def __init__(
        self, detokenizer: Detokenizer, stops: Sequence[str], answer: Answer | None
    ) -> None:
        self.reasoning_tokens = 0
        self._detokenizer = detokenizer
        self._stops = StopFilter(stops)
        self._answer = answer
        self._tokens = 0

    def add(self, output: StepOutput) -> Delta:
        """The text that can be sent now, with a finish reason if the generation has ended."""
        if self._answer is None:
            return self._add(output)
        before, reasoned = self._tokens, self._answer.reasons
        delta = self._add(output)
        pieces = self._answer.add(delta.text)
        if reasoned or self._answer.reasons:
            self.reasoning_tokens += self._tokens - before
        reason = delta.finish_reason or ("stop" if self._answer.complete else None)
        if reason:
            pieces += self._answer.end()
        if reason == "stop" and self._answer.calls:
            reason = "tool_calls"
        return replace(delta, pieces=pieces, finish_reason=reason)

    def _add(self, output: StepOutput) -> Delta:
        sent = []
        for token in output.tokens:
            self._tokens += 1
            text, stopped = self._stops.add(self._detokenizer.add(token))
            sent.append(text)
            if stopped:
                scores = output.scores[: len(sent)]
                return Delta("".join(sent), self._tokens, "stop", scores=scores)
        self._tokens += output.count - len(output.tokens)
        if output.text:
            text, stopped = self._stops.add(output.text)
            sent.append(text)
            if stopped:
                return Delta("".join(sent), self._tokens, "stop")
        if not output.finish_reason:
            return Delta("".join(sent), self._tokens, scores=output.scores)
        text, stopped = self._stops.add(self._detokenizer.rest())
        sent.append(text if stopped else text + self._stops.rest())
        reason = "stop" if stopped else output.finish_reason
        return Delta("".join(sent), self._tokens, reason, scores=output.scores)
