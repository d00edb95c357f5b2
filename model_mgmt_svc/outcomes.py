"""Awaiting work to its end, whatever happens to the task that waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from shared.errors import ServiceError

T = TypeVar("T")


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work` to completion even if this task is cancelled."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((task,))
    return task.result()


async def gather_outcomes(
    calls: Iterable[Coroutine[Any, Any, T]],
) -> tuple[list[T], list[ServiceError]]:
    """Runs calls concurrently, all of them to completion; returns results and errors apart."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    results, errors = [], []
    for outcome in outcomes:
        if isinstance(outcome, ServiceError):
            errors.append(outcome)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            results.append(outcome)
    return results, errors
