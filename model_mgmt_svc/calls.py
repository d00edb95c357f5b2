"""Calls that have to come to their ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from shared.errors import ServiceError

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Does work to its end, whoever cancels this task meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((task,))
    return task.result()


async def settle(calls: Iterable[Coroutine[Any, Any, T]]) -> tuple[list[T], list[ServiceError]]:
    """Runs calls at once to their ends: what came of them, and how others failed."""
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
