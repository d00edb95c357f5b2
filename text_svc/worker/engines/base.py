"""The interface of a generation engine: token ids in, token ids out, while others do the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from text_svc.worker.engines.sampling import Sampling

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Limits:
    """What one engine can hold.

    Attributes:
        context: tokens of one prompt and its answer together; of the prompt alone where
            `new_tokens` is set.
        running: answers generated at once.
        waiting: answers that wait; one more is refused.
        new_tokens: tokens of one answer, for a decoder that has the prompt from an encoder.
    """

    context: int
    running: int
    waiting: int
    new_tokens: int | None = None


@dataclass(frozen=True)
class StepOutput:
    """What one step of the engine has added to an answer.

    Attributes:
        tokens: new ids, without the one that ended the answer.
        count: how many were generated, that one included.
        finish_reason: set on the last step.
        error: the answer has failed; nothing comes after.
    """

    tokens: Sequence[int]
    count: int
    finish_reason: FinishReason | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Generation:
    """One answer that an engine works on. The engine puts steps, one task of the loop takes them.

    Attributes:
        prompt: token ids.
        sampling: `max_new_tokens` is already within the limits.
        inputs: all that the model reads, where that is more than the prompt: tensors on its device.
        started: `time.perf_counter()` when the engine took it out of its queue; 0 before.
    """

    prompt: list[int]
    sampling: Sampling
    inputs: Mapping[str, Any] | None = None
    started: float = 0.0
    outputs: list[StepOutput] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, output: StepOutput) -> None:
        """Hands over a step; on the event loop's thread alone."""
        self.outputs.append(output)
        self._wake.set()

    async def take(self) -> list[StepOutput]:
        """The steps that came since the last call, at least one."""
        await self._wake.wait()
        self._wake.clear()
        outputs, self.outputs = self.outputs, []
        return outputs

    def start(self) -> None:
        """Notes that the answer has left the queue."""
        self.started = time.perf_counter()


class GenerationEngine(Protocol):
    """Generates with one loaded model. Its methods are called on the event loop and do not block.

    Attributes:
        limits: what `submit` may be asked for; the caller checks.
    """

    limits: Limits

    def submit(self, generation: Generation) -> None:
        """Begins, or queues, an answer, first come first served."""

    def cancel(self, generation: Generation) -> None:
        """Ends the work for an answer within one step; an ended one is left alone."""

    async def close(self) -> None:
        """Ends all work and the threads that do it."""
