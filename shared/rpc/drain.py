"""Drain by hand: a replica that takes no new calls until it is told to, or restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import Gauge

from shared.errors import CallCancelledError, ShuttingDownError

# Calls that come all the same are answered for this long: longer than Envoy takes to notice that
# a service is NOT_SERVING, by two health checks that are a second apart.
ANSWERED_SECONDS = 3.0
# Time between two looks at the calls in flight.
LOOK_SECONDS = 0.1

DRAINED = Gauge("replica_drained", "1 while this replica was drained by hand, otherwise 0.")


@dataclass(frozen=True)
class DrainProgress:
    """How far a drain is: calls in flight; whether there are none, and none can come."""

    calls: int
    empty: bool


class Drain:
    """Whether a replica is drained, and its calls in flight, those of streams included.

    Args:
        answered_seconds: time after its begin for which new calls are answered all the same.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        answered_seconds: float = ANSWERED_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls = 0
        self._answered_seconds = answered_seconds
        self._clock = clock
        self._begun_at: float | None = None
        self._news = asyncio.Event()

    @property
    def drained(self) -> bool:
        """Whether new calls are to go elsewhere."""
        return self._begun_at is not None

    @property
    def refuses(self) -> bool:
        """Whether new calls are refused."""
        return self._begun_at is not None and (
            self._clock() - self._begun_at >= self._answered_seconds
        )

    def begin(self) -> None:
        """Takes no new calls from now on."""
        if self._begun_at is None:
            self._set(self._clock())

    def end(self) -> None:
        """Takes calls again."""
        if self._begun_at is not None:
            self._set(None)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Counts a call while the body runs.

        Raises:
            ShuttingDownError: it is refused.
        """
        if self.refuses:
            raise ShuttingDownError("this replica was drained by hand and takes no new calls")
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    async def changed(self) -> None:
        """Returns after the next begin or end."""
        await self._news.wait()

    async def progress(self) -> AsyncIterator[DrainProgress]:
        """The calls in flight, at once and when their number changes; the last one is empty.

        Raises:
            CallCancelledError: the drain was ended meanwhile.
        """
        told: DrainProgress | None = None
        while self.drained:
            now = DrainProgress(self.calls, self.refuses and not self.calls)
            if now != told:
                yield now
            if now.empty:
                return
            told = now
            await asyncio.sleep(LOOK_SECONDS)
        raise CallCancelledError("the drain was ended")

    def _set(self, begun_at: float | None) -> None:
        self._begun_at = begun_at
        DRAINED.set(begun_at is not None)
        self._news.set()
        self._news = asyncio.Event()
