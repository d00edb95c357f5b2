"""How fast files are fetched: a limit that all fetches of a service share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

# What may come at once after a pause, in seconds of the rate.
BURST_SECONDS = 0.25


class RateLimit:
    """Slows down whoever takes more than so many bytes a second.

    Args:
        bytes_per_second: 0 is no limit.
        clock: seconds that only grow.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        bytes_per_second: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._paid_until = 0.0

    async def take(self, size: int) -> None:
        """Counts bytes that have come, and waits until more may come."""
        if not self._rate:
            return
        now = self._clock()
        self._paid_until = max(self._paid_until, now - BURST_SECONDS) + size / self._rate
        if self._paid_until > now:
            await self._sleep(self._paid_until - now)
