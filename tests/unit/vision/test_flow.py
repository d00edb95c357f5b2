"""Pipelines that run ahead by one item and stop at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from vision_svc.flow import ahead


class Source:
    """Numbers, with a record of what was made and whether it was closed."""

    def __init__(self, count: int, fail_at: int = -1) -> None:
        self.made = 0
        self.closed = False
        self._count = count
        self._fail_at = fail_at

    async def items(self) -> AsyncGenerator[int]:
        try:
            for number in range(self._count):
                if number == self._fail_at:
                    raise ValueError(f"no {number}")
                self.made += 1
                yield number
                await asyncio.sleep(0)
        finally:
            self.closed = True


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_all_items_in_order() -> None:
    source = Source(100)
    assert [item async for item in ahead(source.items())] == list(range(100))
    assert source.closed


async def test_it_runs_ahead_by_one_and_no_more() -> None:
    source = Source(100)
    reader = ahead(source.items())
    assert await anext(reader) == 0
    await settle()
    # 0 is being read, 1 waits, 2 is made and waits for room.
    assert source.made == 3
    await settle()
    assert source.made == 3
    await reader.aclose()
    assert source.closed


async def test_an_error_comes_after_the_items_before_it() -> None:
    reader = ahead(Source(10, fail_at=3).items())
    got = []
    with pytest.raises(ValueError, match="no 3"):
        async for item in reader:
            got.append(item)
            await settle()
    assert got == [0, 1, 2]


async def test_newer_items_replace_those_that_wait() -> None:
    dropped: list[int] = []
    reader = ahead(Source(100).items(), on_drop=dropped.append)
    assert await anext(reader) == 0
    await asyncio.sleep(0.05)
    rest = [item async for item in reader]
    assert rest == [99]
    assert dropped == list(range(1, 99))


async def test_a_reader_that_is_cancelled_closes_the_source() -> None:
    source = Source(10**9)

    async def read() -> None:
        async for _ in ahead(ahead(source.items())):
            await asyncio.sleep(0)

    task = asyncio.create_task(read())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle()
    assert source.closed
