"""The memory of chunks: who waits, and that everything is returned."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ml import model_management_pb2 as pb
from shared.errors import ResourceExhaustedError
from shared.files.chunk_memory import FIRST_CHUNK_BYTES, ChunkMemory
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from tests.support.providers import Provider, chunks
from tests.unit.shared.files.conftest import CONTENT, KEY, MODEL, NAME


async def test_those_who_need_more_than_is_free_wait_in_order() -> None:
    memory = ChunkMemory(10)
    await memory.take(6)
    order: list[int] = []

    async def take(size: int) -> None:
        await memory.take(size)
        order.append(size)

    tasks = [asyncio.create_task(take(size)) for size in (5, 1, 4)]
    await asyncio.sleep(0)
    assert order == []  # the one byte does not overtake
    memory.give(6)
    await asyncio.gather(*tasks)
    assert order == [5, 1, 4]
    assert memory.held == 10


async def test_one_that_needs_more_than_there_is_gets_it_alone() -> None:
    memory = ChunkMemory(10)
    await memory.take(100)
    other = asyncio.create_task(memory.take(1))
    await asyncio.sleep(0)
    assert not other.done()
    memory.give(100)
    await other


async def test_one_that_goes_in_the_moment_of_its_turn_is_cancelled() -> None:
    memory = ChunkMemory(10)
    await memory.take(10)
    waiting = asyncio.create_task(memory.take(5))
    await asyncio.sleep(0)
    waiting.cancel()
    memory.give(10)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert memory.held == 0


async def test_one_that_goes_while_it_waits_takes_nothing() -> None:
    memory = ChunkMemory(10)
    await memory.take(10)
    first, second = (asyncio.create_task(memory.take(size)) for size in (10, 1))
    await asyncio.sleep(0)
    first.cancel()
    memory.give(5)
    await second
    assert memory.held == 6
    third = asyncio.create_task(memory.take(10))
    await asyncio.sleep(0)
    memory.give(6)  # its turn comes, and it goes before it notices
    third.cancel()
    await asyncio.wait({third})
    assert memory.held == 0


async def test_a_share_follows_the_size_of_its_chunks() -> None:
    memory = ChunkMemory(1 << 20)
    with memory.share() as share:
        await share.expect()
        assert memory.held == FIRST_CHUNK_BYTES
        share.received(1000)
        assert memory.held == 1000
        await share.expect()
        share.received(3 << 20)
        assert memory.held == (3 << 20) + 1000
        share.written(3 << 20)
        other = asyncio.create_task(memory.take(1 << 20))
        await asyncio.sleep(0)
        assert not other.done()
    await other
    assert memory.held == 1 << 20


async def test_fetches_share_it_and_return_all(source: Provider, tmp_path: Path) -> None:
    names = [f"file{number}" for number in range(8)]
    source.files |= {f"{MODEL}/{name}": CONTENT for name in names}
    limits = FetchLimits(patience_seconds=0, memory_bytes=FIRST_CHUNK_BYTES)  # one chunk at a time
    async with ModelFiles(source.address, tmp_path, limits=limits) as files:
        paths = await asyncio.gather(*(files.fetch(MODEL, name) for name in names))
        assert all(path.read_bytes() == CONTENT for path in paths)
        assert files.memory.held == 0


async def test_a_chunk_over_the_limit_is_refused_at_once_with_the_number(
    source: Provider, tmp_path: Path
) -> None:
    content = random.Random(2).randbytes(3 << 20)
    source.files[KEY] = content

    async def large(provider, request, content, context) -> AsyncIterator[pb.ModelFileChunk]:
        for chunk in chunks(content, request.offset, size=2 << 20):
            yield chunk

    source.usual = large
    for limit in (2 << 20, (2 << 20) - 2000):
        source.requests.clear()
        limits = FetchLimits(chunk_bytes=limit)
        async with ModelFiles(source.address, tmp_path / f"{limit}", limits=limits) as files:
            if limit == 2 << 20:
                assert (await files.fetch(MODEL, NAME)).read_bytes() == content
                continue
            with pytest.raises(ResourceExhaustedError, match=f"more than {limit} bytes") as caught:
                await files.fetch(MODEL, NAME)
            assert caught.value.metadata == {"limit": str(limit)}
            assert len(source.requests) == 1
