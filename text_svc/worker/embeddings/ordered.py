"""Handles a stream of requests concurrently, with results in the order of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


async def in_order(
    work: Callable[[Request], Coroutine[Any, Any, Result]],
    requests: AsyncIterator[Request],
    ahead: int,
) -> AsyncGenerator[Result, None]:
    """Results of `work` for each request, at most `ahead` of which run at once.

    If one fails, its error is raised after the results before it. Closing the generator cancels
    the work that runs.
    """
    room = asyncio.Semaphore(ahead)
    tasks: asyncio.Queue[asyncio.Task[Result] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                tasks.put_nowait(asyncio.create_task(work(request)))
        finally:
            tasks.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while task := await tasks.get():
            yield await task
            room.release()
        await reader
    finally:
        reader.cancel()
        while not tasks.empty():
            if task := tasks.get_nowait():
                task.cancel()
