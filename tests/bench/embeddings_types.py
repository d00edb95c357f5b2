"""What the embedding benchmark measures, and how Python calls."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tests.support.stack import EMBEDDER, MODELS

FOLDER = MODELS / "text" / EMBEDDER


@dataclass(frozen=True)
class Calls:
    """What some callers did together.

    Attributes:
        latencies: of every call, in seconds.
        seconds: from the first call's beginning to the last one's end.
        client_cpu_seconds: of the process that called.
    """

    latencies: Sequence[float]
    seconds: float
    client_cpu_seconds: float


class Embedding(Protocol):
    """One way to embed.

    Attributes:
        client: what makes the calls.
    """

    name: str
    client: str

    def pids(self) -> Sequence[int]:
        """Its processes, without their children; none where another one counts them."""

    async def start(self) -> None:
        """Makes it ready; the first call afterwards is as fast as the others."""

    async def calls(
        self, texts: Sequence[str], *, callers: int, batch: int, seconds: float
    ) -> Calls:
        """Callers of `batch` texts, each asking again until the time is over, and once at least."""

    async def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of one call, for a check of what is measured."""

    async def stop(self) -> None:
        """Frees everything."""


class PythonCalls:
    """Calls from this process."""

    async def embed(self, texts: Sequence[str]) -> None:
        """One caller's call."""
        raise NotImplementedError

    async def calls(
        self, texts: Sequence[str], *, callers: int, batch: int, seconds: float
    ) -> Calls:
        supply = itertools.cycle(texts)
        latencies: list[float] = []
        start, cpu = time.perf_counter(), time.process_time()

        async def caller() -> None:
            again = True
            while again:
                asked = list(itertools.islice(supply, batch))
                begun = time.perf_counter()
                await self.embed(asked)
                latencies.append(time.perf_counter() - begun)
                again = time.perf_counter() < start + seconds

        await asyncio.gather(*(caller() for _ in range(callers)))
        return Calls(latencies, time.perf_counter() - start, time.process_time() - cpu)
