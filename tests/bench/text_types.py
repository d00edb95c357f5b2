"""What the text benchmark measures, and the questions it asks."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

_TOPICS = (
    *("the sea", "a lighthouse", "winter", "a train", "the desert", "an old clock"),
    *("a fox", "the moon", "a garden", "a violin", "the harbour", "a mountain"),
    *("a library", "a storm", "the river", "a painter"),
)


def questions(callers: int, stretch: int) -> list[str]:
    """One question a caller. None comes twice, so that no prefix cache helps."""
    return [
        f"Story {stretch}-{caller}: tell me a very long story about {_TOPICS[caller % 16]}."
        for caller in range(callers)
    ]


@dataclass(frozen=True)
class Stretch:
    """Some callers with one question each, all at once.

    Attributes:
        arrivals: for each caller, the time of each of its tokens in seconds from the start.
    """

    arrivals: Sequence[Sequence[float]]

    @property
    def rate(self) -> float:
        """Tokens a second, all callers together."""
        last = max(times[-1] for times in self.arrivals)
        return sum(map(len, self.arrivals)) / last

    @property
    def first(self) -> list[float]:
        """Each caller's time to its first token."""
        return [times[0] for times in self.arrivals]

    @property
    def gaps(self) -> list[float]:
        """Times between two tokens of a caller."""
        return [
            later - earlier
            for times in self.arrivals
            for earlier, later in itertools.pairwise(times)
        ]


def summary(stretches: Sequence[Stretch]) -> dict[str, float]:
    """Medians of the rounds; latencies of all of them together, in milliseconds."""
    first = [each for stretch in stretches for each in stretch.first]
    gaps = [each for stretch in stretches for each in stretch.gaps] or [0.0]
    return {
        "tokens_per_s": statistics.median(stretch.rate for stretch in stretches),
        "first_p50_ms": float(np.percentile(first, 50)) * 1000,
        "first_p99_ms": float(np.percentile(first, 99)) * 1000,
        "gap_p50_ms": float(np.percentile(gaps, 50)) * 1000,
        "gap_p99_ms": float(np.percentile(gaps, 99)) * 1000,
    }


def ratio(ours: Sequence[Stretch], theirs: Sequence[Stretch]) -> dict[str, float]:
    """Medians, over the rounds, of our figure by theirs of the same round."""
    return {
        "tokens_per_s": statistics.median(
            mine.rate / other.rate for mine, other in zip(ours, theirs, strict=True)
        ),
        "first_p50": statistics.median(
            statistics.median(mine.first) / statistics.median(other.first)
            for mine, other in zip(ours, theirs, strict=True)
        ),
    }


class Peer(Protocol):
    """Something that generates.

    Attributes:
        client: what asks it.
    """

    name: str
    client: str

    async def start(self) -> None:
        """Makes it ready; may take minutes the first time."""

    async def stretch(self, questions: Sequence[str], tokens: int) -> Stretch:
        """All questions at once, greedy, so many new tokens each."""

    async def stop(self) -> None:
        """Ends its processes."""


def label(peer: Peer) -> str:
    """What tables and plots call it."""
    return f"{peer.name} ({peer.client})"


def as_chat(question: str) -> list[dict[str, Any]]:
    """A question as the only message of a conversation."""
    return [{"role": "user", "content": question}]
