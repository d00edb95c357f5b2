"""Waiting for a condition."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 120.0) -> None:
    """Returns once the condition holds; fails after a time that only a fault can take."""
    async with asyncio.timeout(seconds):
        while True:
            start = time.monotonic()
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            # A condition that takes long leaves the cores to what it awaits.
            await asyncio.sleep(max(0.005, time.monotonic() - start))
