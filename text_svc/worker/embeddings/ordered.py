"""Work on a stream of requests, some of it ahead, with answers in the order of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def in_order(
    work: Callable[[Request], Coroutine[Any, Any, Answer]],
    requests: AsyncIterator[Request],
    ahead: int,
) -> AsyncGenerator[Answer, None]:
    """Answers to requests, of which at most `ahead` are worked on at once.

    A failure ends the stream in its turn, after the answers before it. Closing the generator
    cancels what runs.
    """
    room = asyncio.Semaphore(ahead)
    tasks: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()

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
