"""Fetching: once for all who ask, chunks of any size, cancelled, names refused."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from ml import model_management_pb2 as pb
from shared.errors import (
    InvalidModelIdError,
    InvalidPathError,
    MissingFieldError,
    ModelFileNotFoundError,
    ProviderUnavailableError,
)
from shared.files.client import ModelFiles
from shared.model_ids import parse_model_id
from tests.support.processes import free_port
from tests.support.providers import Provider, chunks, honest
from tests.support.waiting import until
from tests.unit.shared.files.conftest import (
    CONTENT,
    KEY,
    MODEL,
    NAME,
    QUICK,
    hangs,
    leftovers,
)


async def test_a_file_is_fetched_once_and_kept(files: ModelFiles, source: Provider) -> None:
    seen: list[tuple[int, int]] = []
    path = await files.fetch(MODEL, NAME, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert path == files.folder(MODEL) / NAME
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(seen))
    assert await files.fetch(MODEL, NAME) == path
    assert source.asked_for(KEY) == [0, len(CONTENT)]  # whether it is still the same
    assert leftovers(files.cache_dir) == []


async def test_ten_callers_are_one_fetch(files: ModelFiles, source: Provider) -> None:
    paths = await asyncio.gather(*(files.fetch(MODEL, NAME) for _ in range(10)))
    assert len(set(paths)) == 1
    assert source.asked_for(KEY) == [0]


async def test_an_empty_file(files: ModelFiles, source: Provider) -> None:
    source.files[f"{MODEL}/empty.txt"] = b""
    path = await files.fetch(MODEL, "empty.txt")
    assert path.read_bytes() == b""


async def test_chunks_of_any_size_and_empty_ones_are_taken(
    files: ModelFiles, source: Provider
) -> None:
    async def odd(provider, request, content, context):
        for start, chunk in enumerate(chunks(content, size=7_777)):
            if start % 3 == 0:
                yield pb.ModelFileChunk(offset=chunk.offset, total_size=len(content))
            yield chunk

    source.usual = odd
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT


async def test_one_that_goes_away_does_not_end_the_fetch_of_others(
    files: ModelFiles, source: Provider
) -> None:
    go_on = asyncio.Event()

    async def waits(provider, request, content, context):
        await go_on.wait()
        async for chunk in honest(provider, request, content, context):
            yield chunk

    source.usual = waits
    first, second = (asyncio.create_task(files.fetch(MODEL, NAME)) for _ in range(2))
    await until(lambda: source.requests)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    go_on.set()
    assert (await second).read_bytes() == CONTENT
    assert source.asked_for(KEY) == [0]


async def test_the_fetch_ends_when_all_have_gone(files: ModelFiles, source: Provider) -> None:
    source.usual = hangs
    waiters = [asyncio.create_task(files.fetch(MODEL, NAME)) for _ in range(3)]
    await until(lambda: source.requests)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    await until(lambda: source.cancelled == 1)
    source.usual = honest
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT


async def test_two_caches_in_one_folder_do_not_disturb_each_other(
    source: Provider, tmp_path: Path
) -> None:
    async with (
        ModelFiles(source.address, tmp_path, limits=QUICK) as one,
        ModelFiles(source.address, tmp_path, limits=QUICK) as two,
    ):
        paths = await asyncio.gather(one.fetch(MODEL, NAME), two.fetch(MODEL, NAME))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert source.asked_for(KEY) == [0]


async def test_a_provider_that_is_down(tmp_path: Path) -> None:
    async with ModelFiles(f"127.0.0.1:{free_port()}", tmp_path, limits=QUICK) as files:
        with pytest.raises(ProviderUnavailableError) as caught:
            await files.fetch(MODEL, NAME)
        assert caught.value.retry_after
    assert leftovers(tmp_path) == []


async def test_a_file_that_does_not_exist_leaves_nothing(files: ModelFiles) -> None:
    with pytest.raises(ModelFileNotFoundError, match=r"no file 'nothing\.json'"):
        await files.fetch(MODEL, "nothing.json")
    assert leftovers(files.cache_dir) == []
    assert not files.folder(MODEL).exists()


@pytest.mark.parametrize(
    ("model_id", "path", "error"),
    [
        ("", NAME, MissingFieldError),
        (MODEL, "", MissingFieldError),
        ("../x", NAME, InvalidModelIdError),
        ("a/b/../../..", NAME, InvalidModelIdError),
        (MODEL, "../other/config.json", InvalidPathError),
        (MODEL, "/etc/passwd", InvalidPathError),
        (MODEL, "a\0b", InvalidPathError),
    ],
)
async def test_bad_names_are_refused_before_anything_is_asked(
    files: ModelFiles, source: Provider, model_id: str, path: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await files.fetch(parse_model_id(model_id), path)
    with pytest.raises(error):
        async with files.open(parse_model_id(model_id), path):
            pass
    assert not source.requests
    assert not files.cache_dir.exists()


async def test_leaving_ends_what_is_under_way(source: Provider, tmp_path: Path) -> None:
    source.usual = hangs
    async with ModelFiles(source.address, tmp_path, limits=QUICK) as files:
        fetch = asyncio.create_task(files.fetch(MODEL, NAME))
        await until(lambda: source.requests)
    with pytest.raises(Exception, match="stopped"):
        await fetch


async def test_a_fetch_cancelled_at_any_moment_leaves_no_lock(
    source: Provider, tmp_path: Path
) -> None:
    for delay in (0, *(0.0005 * step for step in range(20))):
        async with ModelFiles(source.address, tmp_path, limits=QUICK) as files:
            fetch = asyncio.create_task(files.fetch(MODEL, NAME))
            await asyncio.sleep(delay)
            fetch.cancel()
            await asyncio.wait((fetch,))
            async with asyncio.timeout(60):
                assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
            (files.folder(MODEL) / NAME).unlink()
