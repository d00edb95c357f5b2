"""Fetching: shared, resumed, verified, cancelled; the disk holds whole files and records alone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from shared.errors import (
    InternalError,
    InvalidModelIdError,
    InvalidPathError,
    MissingFieldError,
    ModelFileNotFoundError,
    ProviderUnavailableError,
    ResourceExhaustedError,
    UnavailableError,
)
from shared.file_fetch import FetchLimits
from shared.file_provider import FileProvider
from tests.support.processes import free_port
from tests.support.providers import CHUNK_BYTES, Context, Provider, chunks, honest, old
from tests.support.waiting import until

MODEL, NAME = "org/name", "model.safetensors"
KEY = f"{MODEL}/{NAME}"
CONTENT = random.Random(1).randbytes(10 * CHUNK_BYTES + 17)
QUICK = FetchLimits(backoff_seconds=0.01, first_chunk_seconds=5, stall_seconds=5)
CUT = 3 * CHUNK_BYTES


async def dies(
    provider: Provider, request: pb.ModelFileRequest, content: bytes, context: Context
) -> AsyncIterator[pb.ModelFileChunk]:
    """Breaks off after three chunks, as a process that is killed does."""
    for chunk in chunks(content, request.offset)[:3]:
        yield chunk
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


async def hangs(
    provider: Provider, request: pb.ModelFileRequest, content: bytes, context: Context
) -> AsyncIterator[pb.ModelFileChunk]:
    """Sends three chunks and then nothing."""
    for chunk in chunks(content, request.offset)[:3]:
        yield chunk
    await asyncio.Event().wait()


@pytest.fixture
async def source() -> AsyncIterator[Provider]:
    async with Provider({KEY: CONTENT}).running() as provider:
        yield provider


@pytest.fixture
async def files(source: Provider, tmp_path: Path) -> AsyncIterator[FileProvider]:
    async with FileProvider(source.address, tmp_path / "cache", limits=QUICK) as provider:
        yield provider


def leftovers(cache: Path) -> list[str]:
    """What is in the cache beside whole files and their records."""
    state = cache / ".fetch"
    return sorted(
        path.name
        for path in (state.iterdir() if state.is_dir() else ())
        if path.suffix != ".json" or path.name.endswith(".part.json")
    )


def parts(cache: Path) -> list[Path]:
    return list(cache.glob(".fetch/*.part"))


async def test_a_file_is_fetched_once_and_kept(files: FileProvider, source: Provider) -> None:
    seen: list[tuple[int, int]] = []
    path = await files.fetch(MODEL, NAME, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert path == files.folder(MODEL) / NAME
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(seen))
    assert await files.fetch(MODEL, NAME) == path
    assert source.asked_for(KEY) == [0]
    assert leftovers(files.cache_dir) == []


async def test_ten_callers_are_one_fetch(files: FileProvider, source: Provider) -> None:
    paths = await asyncio.gather(*(files.fetch(MODEL, NAME) for _ in range(10)))
    assert len(set(paths)) == 1
    assert source.asked_for(KEY) == [0]


async def test_an_empty_file(files: FileProvider, source: Provider) -> None:
    source.files[f"{MODEL}/empty.txt"] = b""
    path = await files.fetch(MODEL, "empty.txt")
    assert path.read_bytes() == b""


async def test_chunks_of_any_size_and_empty_ones_are_taken(
    files: FileProvider, source: Provider
) -> None:
    async def odd(provider, request, content, context):
        for start, chunk in enumerate(chunks(content, size=7_777)):
            if start % 3 == 0:
                yield pb.ModelFileChunk(offset=chunk.offset, total_size=len(content))
            yield chunk

    source.usual = odd
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT


async def test_an_interrupted_file_resumes_where_it_stopped(
    files: FileProvider, source: Provider
) -> None:
    source.behaviours = [dies, dies]
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    assert source.asked_for(KEY) == [0, CUT, 2 * CUT]


async def test_an_old_provider_that_ignores_the_offset_is_read_anew(
    files: FileProvider, source: Provider
) -> None:
    source.behaviours = [dies]
    source.usual = old
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    assert source.asked_for(KEY) == [0, CUT]


async def test_a_provider_that_stops_sending_is_asked_again(
    source: Provider, tmp_path: Path
) -> None:
    source.behaviours = [hangs]
    limits = FetchLimits(backoff_seconds=0.01, stall_seconds=0.2)
    async with FileProvider(source.address, tmp_path, limits=limits) as files:
        assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    assert source.asked_for(KEY) == [0, CUT]


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
        attempts=2, backoff_seconds=0.01, first_chunk_seconds=0.2, stall_seconds=0.2
    )
    async with FileProvider(source.address, tmp_path, limits=limits) as files:
        for behaviour in (silent, empty_for_ever):
            source.requests.clear()
            source.usual = behaviour
            with pytest.raises(ProviderUnavailableError, match=r"sent nothing .* for 0\.2 s"):
                await files.fetch(MODEL, NAME)
            assert source.asked_for(KEY) == [0, 0]
    assert leftovers(tmp_path) == []


async def test_a_part_is_resumed_by_the_next_process(source: Provider, tmp_path: Path) -> None:
    source.usual = hangs
    async with FileProvider(source.address, tmp_path, limits=QUICK) as first:
        fetch = asyncio.create_task(first.fetch(MODEL, NAME))
        await until(lambda: [part.stat().st_size for part in parts(tmp_path)] == [CUT])
        fetch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await fetch
    source.usual = honest
    async with FileProvider(source.address, tmp_path, limits=QUICK) as second:
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
    limits = FetchLimits(attempts=1)
    async with FileProvider(source.address, tmp_path, limits=limits) as files:
        with pytest.raises(ProviderUnavailableError):
            await files.fetch(MODEL, NAME)
        assert leftovers(tmp_path) != []
        source.usual = honest
        source.files[KEY] = changed
        assert (await files.fetch(MODEL, NAME)).read_bytes() == changed
    assert source.asked_for(KEY) == [0, CUT, 0]


async def test_a_damaged_part_is_found_by_its_hash(source: Provider, tmp_path: Path) -> None:
    source.usual = dies
    async with FileProvider(source.address, tmp_path, limits=FetchLimits(attempts=1)) as files:
        with pytest.raises(ProviderUnavailableError):
            await files.fetch(MODEL, NAME)
        (part,) = parts(tmp_path)
        part.write_bytes(b"\0" * part.stat().st_size)
        source.usual = honest
        assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT


async def test_one_that_goes_away_does_not_end_the_fetch_of_others(
    files: FileProvider, source: Provider
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


async def test_the_fetch_ends_when_all_have_gone(files: FileProvider, source: Provider) -> None:
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
        FileProvider(source.address, tmp_path, limits=QUICK) as one,
        FileProvider(source.address, tmp_path, limits=QUICK) as two,
    ):
        paths = await asyncio.gather(one.fetch(MODEL, NAME), two.fetch(MODEL, NAME))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert source.asked_for(KEY) == [0]


@pytest.mark.parametrize("keep_time", [True, False], ids=["silently", "with a new time"])
@pytest.mark.parametrize("damaged", [CONTENT[:-1] + b"\0", CONTENT[:-1], b""])
async def test_a_damaged_cached_file_is_fetched_again(
    files: FileProvider, source: Provider, damaged: bytes, keep_time: bool
) -> None:
    path = await files.fetch(MODEL, NAME)
    stat = path.stat()
    path.write_bytes(damaged)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    assert source.asked_for(KEY) == [0, 0]


async def test_a_touched_file_and_one_without_its_record(
    files: FileProvider, source: Provider
) -> None:
    path = await files.fetch(MODEL, NAME)
    path.touch()
    await files.fetch(MODEL, NAME)
    assert source.asked_for(KEY) == [0]
    (record,) = (files.cache_dir / ".fetch").iterdir()
    record.write_text("{")
    await files.fetch(MODEL, NAME)
    assert source.asked_for(KEY) == [0, 0]


async def test_a_cached_file_needs_no_provider(source: Provider, tmp_path: Path) -> None:
    async with FileProvider(source.address, tmp_path, limits=QUICK) as files:
        await files.fetch(MODEL, NAME)
    async with FileProvider(f"127.0.0.1:{free_port()}", tmp_path, limits=QUICK) as files:
        assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT


async def test_a_provider_that_is_down(tmp_path: Path) -> None:
    async with FileProvider(f"127.0.0.1:{free_port()}", tmp_path, limits=QUICK) as files:
        with pytest.raises(ProviderUnavailableError) as caught:
            await files.fetch(MODEL, NAME)
        assert caught.value.retry_after
    assert leftovers(tmp_path) == []


async def test_a_file_that_does_not_exist_leaves_nothing(files: FileProvider) -> None:
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
    files: FileProvider, source: Provider, model_id: str, path: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await files.fetch(model_id, path)
    with pytest.raises(error):
        async with files.open(model_id, path):
            pass
    assert not source.requests
    assert not files.cache_dir.exists()


async def test_a_symlink_out_of_the_cache_is_not_followed(
    files: FileProvider, source: Provider, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / NAME).write_bytes(b"secret")
    files.cache_dir.mkdir()
    files.folder(MODEL).symlink_to(outside)
    with pytest.raises(InvalidPathError):
        await files.fetch(MODEL, NAME)
    with pytest.raises(InvalidPathError):
        async with files.open(MODEL, NAME):
            pass
    assert (outside / NAME).read_bytes() == b"secret"


async def test_a_file_larger_than_the_disk_is_refused_before_it_is_written(
    files: FileProvider, source: Provider
) -> None:
    async def enormous(provider, request, content, context):
        yield pb.ModelFileChunk(data=b"x" * 1000, total_size=1 << 60)
        await asyncio.Event().wait()

    source.usual = enormous
    with pytest.raises(ResourceExhaustedError, match=r"disk .* full: 1152921504606846976 bytes"):
        await files.fetch(MODEL, NAME)
    assert leftovers(files.cache_dir) == []


async def test_a_disk_that_fills_up_leaves_nothing(
    files: FileProvider, source: Provider, file_size_limit
) -> None:
    file_size_limit(5 * CHUNK_BYTES)
    with pytest.raises(ResourceExhaustedError, match="the disk of the model cache is full"):
        await files.fetch(MODEL, NAME)
    file_size_limit(None)
    assert leftovers(files.cache_dir) == []
    assert not files.folder(MODEL).exists()
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT


@pytest.fixture
def file_size_limit():
    """Sets the size at which the kernel refuses to let a file of this process grow."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size or before[0], before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_cache_that_cannot_be_written(source: Provider, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with FileProvider(source.address, tmp_path / "file" / "cache", limits=QUICK) as files:
        with pytest.raises(InternalError, match="model cache cannot be used: Not a directory"):
            await files.fetch(MODEL, NAME)
    cache = tmp_path / "cache"
    async with FileProvider(source.address, cache, limits=QUICK) as files:
        cache.mkdir()
        files.folder(MODEL).write_text("in the way")
        with pytest.raises(InternalError, match="model cache cannot be used") as caught:
            await files.fetch(MODEL, NAME)
    assert str(tmp_path) not in caught.value.message
    assert leftovers(cache) == []


async def test_a_reader_follows_a_file_that_is_still_coming(
    files: FileProvider, source: Provider
) -> None:
    go_on = asyncio.Event()

    async def in_two(provider, request, content, context):
        messages = chunks(content, request.offset)
        for chunk in messages[:3]:
            yield chunk
        await go_on.wait()
        for chunk in messages[3:]:
            yield chunk

    source.usual = in_two
    received = b""
    async with asyncio.timeout(10), files.open(MODEL, NAME) as reader:
        assert reader.total_size == len(CONTENT)
        async for block in reader.blocks():
            received += block
            if len(received) == CUT:
                assert not go_on.is_set()
                go_on.set()
    assert received == CONTENT
    assert (files.folder(MODEL) / NAME).read_bytes() == CONTENT


async def test_a_reader_is_told_when_the_content_changed_half_way(
    files: FileProvider, source: Provider
) -> None:
    source.behaviours = [dies]
    source.usual = old  # begins again at 0, so that what was read may be of another version
    with pytest.raises(UnavailableError, match="changed at its source"):
        async with files.open(MODEL, NAME) as reader:
            async for _ in reader.blocks():
                pass


async def test_a_reader_never_gets_the_end_of_a_wrong_file(
    files: FileProvider, source: Provider
) -> None:
    async def wrong(provider, request, content, context):
        for chunk in chunks(content, sha256=hashlib.sha256(b"other").hexdigest()):
            yield chunk

    source.usual = wrong
    received = 0
    with pytest.raises(InternalError, match="SHA-256"):
        async with files.open(MODEL, NAME) as reader:
            async for block in reader.blocks():
                received += len(block)
    assert received < len(CONTENT)
    assert leftovers(files.cache_dir) == []


async def test_a_reader_finds_damage_in_the_cache(files: FileProvider, source: Provider) -> None:
    path = await files.fetch(MODEL, NAME)
    stat = path.stat()
    path.write_bytes(CONTENT[:-1] + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    received = b""
    with pytest.raises(UnavailableError, match="damaged"):
        async with files.open(MODEL, NAME) as reader:
            async for block in reader.blocks():
                received += block
    assert len(received) < len(CONTENT)
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT


async def test_leaving_ends_what_is_under_way(source: Provider, tmp_path: Path) -> None:
    source.usual = hangs
    async with FileProvider(source.address, tmp_path, limits=QUICK) as files:
        fetch = asyncio.create_task(files.fetch(MODEL, NAME))
        await until(lambda: source.requests)
    with pytest.raises(Exception, match="stopped"):
        await fetch


async def test_a_fetch_cancelled_at_any_moment_leaves_no_lock(
    source: Provider, tmp_path: Path
) -> None:
    for delay in (0, *(0.0005 * step for step in range(20))):
        async with FileProvider(source.address, tmp_path, limits=QUICK) as files:
            fetch = asyncio.create_task(files.fetch(MODEL, NAME))
            await asyncio.sleep(delay)
            fetch.cancel()
            await asyncio.wait((fetch,))
            async with asyncio.timeout(20):
                assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
            (files.folder(MODEL) / NAME).unlink()
