"""The interface of a generation engine: token ids in, token ids out, for many callers at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from shared.caller import Weights
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.sampling import Sampling

FinishReason = Literal["stop", "length"]

# Among the inputs of a generation, the prompt itself, for an engine that reads texts.
PROMPT_TEXT = "text"


def extra_running(running: int) -> int:
    """`Limits.extra` of an engine that batches: a quarter of what may run at once."""
    return running // 4


class Engine(Protocol):
    """Generates with one loaded model.

    All methods are called on the event loop's thread and do not block. An engine hands over what
    each of its steps produced with `Generation.put`.

    Attributes:
        limits: what `submit` accepts; the caller checks it.
    """

    limits: Limits

    def submit(self, generation: Generation) -> None:
        """Starts or queues a generation. Callers take turns, as in `shared.turns.Turns`."""

    async def compile(self, form: Form) -> Any:
        """Compiles the form of an answer before its generation is submitted.

        Returns:
            What the generation has as its `form`.

        Raises:
            InvalidArgumentError: it cannot be compiled, or takes too much for that.
        """

    def cancel(self, generation: Generation) -> None:
        """Stops a generation within one step; does nothing if it has already ended."""

    @property
    def cache_bytes(self) -> int:
        """Bytes that the key-value cache has taken so far."""

    @property
    def cache_limit_bytes(self) -> int:
        """The most that `cache_bytes` can become; 0 if the engine has no such cache of its own."""

    async def give_back(self) -> None:
        """Gives back what an idle engine does not need. Generations that come meanwhile wait."""

    async def close(self) -> None:
        """Stops all generations and the engine's threads and processes."""


@dataclass(frozen=True)
class Limits:
    """The capacity of an engine.

    Attributes:
        context: most tokens of a prompt and what is generated from it together; of the prompt
            alone if `new_tokens` is set.
        running: most generations that run at once.
        extra: how many more may run, of callers that have none running: so one that comes anew
            need not wait until a generation of the others has ended.
        waiting: most generations that wait; further ones are refused.
        new_tokens: most tokens to generate, for a decoder that gets the prompt from an encoder.
        repetition_penalty: whether the engine has one.
        features: those of `sampling.OPTIONAL` that it has.
        vocabulary: number of its tokens; needed with `logit_bias` among the features.
        weights: of callers.
    """

    context: int
    running: int
    waiting: int
    new_tokens: int | None = None
    repetition_penalty: bool = True
    features: frozenset[str] = frozenset()
    vocabulary: int = 0
    extra: int = 0
    weights: Weights = field(default_factory=dict)


@dataclass(eq=False)
class Generation:
    """One request in an engine. The engine puts outputs; one task on the event loop takes them.

    Attributes:
        prompt: token ids.
        sampling: its `max_new_tokens` is already within the engine's limits.
        inputs: the model's inputs, on its device, if it reads more than `prompt`; of an engine
            that reads texts, the text.
        caller: whose it is.
        priority: among its caller's generations that wait.
        form: what `Engine.compile` has made of the form of its answer.
        started: `time.perf_counter()` when it left the queue; 0 before.
    """

    prompt: list[int]
    sampling: Sampling
    inputs: Mapping[str, Any] | None = None
    caller: str = ""
    priority: int = 0
    form: Any = None
    started: float = 0.0
    _generated: int = 0
    _outputs: list[StepOutput] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, output: StepOutput) -> None:
        """Adds an output. Called on the event loop's thread only."""
        self._outputs.append(output)
        self._generated += output.count
        self._wake.set()

    async def take(self) -> list[StepOutput]:
        """Waits for the outputs since the last call, at least one."""
        await self._wake.wait()
        self._wake.clear()
        outputs, self._outputs = self._outputs, []
        return outputs

    @property
    def cost(self) -> int:
        """The tokens that it has taken so far."""
        return len(self.prompt) + self._generated

    def start(self) -> None:
        """Notes that the generation has left the queue."""
        self.started = time.perf_counter()


@dataclass(frozen=True)
class TokenScore:
    """The log-probability of a token, of the model's own scores.

    Attributes:
        top: the likeliest tokens in its place and theirs, best first, as many as were asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class StepOutput:
    """What one step of the engine added to a generation.

    Attributes:
        tokens: new ids, without an end token.
        count: tokens generated, with the end token.
        text: what is new, of an engine that writes text instead of `tokens`; there `count` is
            right in all outputs together.
        finish_reason: set in the last output.
        error: the generation failed; this is its last output.
        scores: of `tokens`, if the generation wants log-probabilities.
    """

    tokens: Sequence[int]
    count: int
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    text: str = ""
    scores: Sequence[TokenScore] = ()
