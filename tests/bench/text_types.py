"""What the text benchmark measures, and the questions it asks."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import psutil

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


def system_prompt(number: int) -> str:
    """A system prompt of about 500 tokens; two of different numbers share no beginning."""
    rules = (f"Rule {rule}: whatever is said of {topic}, keep it short, plain and true."
             for rule, topic in enumerate(_TOPICS * 2, 1))  # fmt: skip
    return f"{number} is the number of these rules. {' '.join(rules)}"


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


@dataclass(frozen=True)
class Repeated:
    """Times to the first token of one caller after a long system prompt.

    Attributes:
        cold: where the prompt was never seen before.
        warm: of other questions after the same prompt.
    """

    cold: float
    warm: Sequence[float]

    @staticmethod
    def medians(rounds: Sequence[Repeated]) -> dict[str, float]:
        """Of the rounds, in milliseconds, and of their ratios."""
        warm = [statistics.median(each.warm) for each in rounds]
        return {
            "cold_ms": statistics.median(each.cold for each in rounds) * 1000,
            "warm_ms": statistics.median(warm) * 1000,
            "share": statistics.median(
                again / each.cold for again, each in zip(warm, rounds, strict=True)
            ),
        }


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

    def pids(self) -> Sequence[int]:
        """Its processes, without their children; none where another peer counts them."""

    async def start(self) -> None:
        """Makes it ready; may take minutes the first time."""

    async def stretch(self, questions: Sequence[str], tokens: int, system: str = "") -> Stretch:
        """All questions at once, greedy, so many new tokens each, after the same system prompt."""

    async def stop(self) -> None:
        """Ends its processes."""


def label(peer: Peer) -> str:
    """What tables and plots call it."""
    return f"{peer.name} ({peer.client})"


def as_chat(question: str, system: str = "") -> list[dict[str, Any]]:
    """A question as a conversation, after the system prompt if there is one."""
    told = [{"role": "system", "content": system}] if system else []
    return [*told, {"role": "user", "content": question}]


def memory_mib(pids: Sequence[int]) -> float:
    """What processes and their children hold: shared pages count once, as shares (Linux's PSS)."""
    roots = [psutil.Process(pid) for pid in pids]
    family = {each for root in roots for each in (root, *root.children(recursive=True))}
    return sum(each.memory_full_info().pss for each in family) / (1 << 20)
