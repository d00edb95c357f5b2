"""Interrupted files: what is there is kept, and never mixed with another version."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from shared.errors import (
    ProviderUnavailableError,
)
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from tests.support.providers import Provider, honest, old
from tests.support.waiting import until
from tests.unit.shared.files.conftest import (
    CONTENT,
    CUT,
    KEY,
    MODEL,
    NAME,
    QUICK,
    dies,
    hangs,
    leftovers,
    parts,
)


async def test_an_interrupted_file_resumes_where_it_stopped(
    files: ModelFiles, source: Provider
) -> None:
    source.behaviours = [dies, dies]
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    assert source.asked_for(KEY) == [0, CUT, 2 * CUT]


async def test_an_old_provider_that_ignores_the_offset_is_read_anew(
    files: ModelFiles, source: Provider
) -> None:
    source.behaviours = [dies]
    source.usual = old
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    assert source.asked_for(KEY) == [0, CUT]


async def test_a_provider_that_stops_sending_is_asked_again(
    source: Provider, tmp_path: Path
) -> None:
    source.behaviours = [hangs]
    limits = FetchLimits(backoff_seconds=0.01, stall_seconds=1)
    async with ModelFiles(source.address, tmp_path, limits=limits) as files:
        assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    first, *later = source.asked_for(KEY)
    assert first == 0
    assert later
    assert 0 not in later


async def test_a_provider_that_never_begins_or_sends_only_nothing_is_given_up(
    source: Provider, tmp_path: Path
) -> None:
    async def silent(provider, request, content, context):
        await asyncio.Event().wait()
        yield

    async def empty_for_ever(provider, request, content, context):
        while True:
            yield pb.ModelFileChunk(total_size=len(content))
            await asyncio.sleep(0.001)

    limits = FetchLimits(
        attempts=2, patience_seconds=0, backoff_seconds=0.01, first_chunk_seconds=1, stall_seconds=1
    )
    async with ModelFiles(source.address, tmp_path, limits=limits) as files:
        for behaviour in (silent, empty_for_ever):
            source.requests.clear()
            source.usual = behaviour
            with pytest.raises(ProviderUnavailableError, match=r"sent nothing .* for 1 s"):
                await files.fetch(MODEL, NAME)
            assert source.asked_for(KEY) == [0, 0]
    assert leftovers(tmp_path) == []


async def test_a_part_is_resumed_by_the_next_process(source: Provider, tmp_path: Path) -> None:
    source.usual = hangs
    async with ModelFiles(source.address, tmp_path, limits=QUICK) as first:
        fetch = asyncio.create_task(first.fetch(MODEL, NAME))
        await until(lambda: [part.stat().st_size for part in parts(tmp_path)] == [CUT])
        fetch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await fetch
    source.usual = honest
    async with ModelFiles(source.address, tmp_path, limits=QUICK) as second:
        assert (await second.fetch(MODEL, NAME)).read_bytes() == CONTENT
    assert source.asked_for(KEY) == [0, CUT]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "changed",
    [CONTENT[::-1], CONTENT + b"more", CONTENT[:100], b""],
    ids=["same size", "longer", "shorter than the part", "empty"],
)
async def test_a_part_of_another_version_is_not_mixed_in(
    source: Provider, tmp_path: Path, changed: bytes
) -> None:
    async def dies_known(provider, request, content, context):
        for chunk in [c async for c in honest(provider, request, content, context)][:3]:
            yield chunk
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    source.usual = dies_known
    limits = FetchLimits(attempts=1, patience_seconds=0)
    async with ModelFiles(source.address, tmp_path, limits=limits) as files:
        with pytest.raises(ProviderUnavailableError):
            await files.fetch(MODEL, NAME)
        assert leftovers(tmp_path) != []
        source.usual = honest
        source.files[KEY] = changed
        assert (await files.fetch(MODEL, NAME)).read_bytes() == changed
    assert source.asked_for(KEY) == [0, CUT, 0]


async def test_a_damaged_part_is_found_by_its_hash(source: Provider, tmp_path: Path) -> None:
    source.usual = dies
    async with ModelFiles(
        source.address, tmp_path, limits=FetchLimits(attempts=1, patience_seconds=0)
    ) as files:
        with pytest.raises(ProviderUnavailableError):
            await files.fetch(MODEL, NAME)
        (part,) = parts(tmp_path)
        part.write_bytes(b"\0" * part.stat().st_size)
        source.usual = honest
        assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT


async def test_a_provider_that_is_down_for_a_while_is_waited_for(
    source: Provider, tmp_path: Path
) -> None:
    down = True

    async def comes_back(provider, request, content, context):
        if down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Connection refused")
        async for chunk in honest(provider, request, content, context):
            yield chunk

    source.behaviours = [dies]
    source.usual = comes_back
    limits = FetchLimits(attempts=2, patience_seconds=60, backoff_seconds=0.01)
    async with ModelFiles(source.address, tmp_path, limits=limits) as files:
        fetch = asyncio.create_task(files.fetch(MODEL, NAME))
        await until(lambda: len(source.requests) > 5)  # more than the attempts
        down = False
        assert (await fetch).read_bytes() == CONTENT
    assert set(source.asked_for(KEY)[1:]) == {CUT}
