"""The interface of a generation engine: submit a prompt, read deltas, leave to cancel."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from text_svc.worker.sampling import Sampling, SamplingDefaults

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Delta:
    """New text of an answer. The last delta of an answer has a finish reason and may have text."""

    text: str
    tokens_generated: int
    finish_reason: FinishReason | None = None


class GenerationEngine(Protocol):
    """Generates text with one loaded model."""

    defaults: SamplingDefaults

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that the model wants."""

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation; raises what `chat.render` raises."""

    def generate(self, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Streams one answer. Closing the generator stops the work within one token.

        Raises:
            InvalidArgumentError: the prompt is empty or does not fit the model's context.
            QueueFullError: too many answers wait already.
        """
