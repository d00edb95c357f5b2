"""Cached files: damaged ones are found, links are not followed, full disks leave nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from ml import model_management_pb2 as pb
from shared.errors import (
    InternalError,
    InvalidPathError,
    ResourceExhaustedError,
)
from shared.files.client import ModelFiles
from tests.support.processes import free_port
from tests.support.providers import CHUNK_BYTES, Provider
from tests.unit.shared.files.conftest import (
    CONTENT,
    KEY,
    MODEL,
    NAME,
    QUICK,
    leftovers,
)


@pytest.mark.parametrize("keep_time", [True, False], ids=["silently", "with a new time"])
@pytest.mark.parametrize("damaged", [CONTENT[:-1] + b"\0", CONTENT[:-1], b""])
async def test_a_damaged_cached_file_is_fetched_again(
    files: ModelFiles, source: Provider, damaged: bytes, keep_time: bool
) -> None:
    path = await files.fetch(MODEL, NAME)
    stat = path.stat()
    path.chmod(0o644)  # nobody may write to it
    path.write_bytes(damaged)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    assert source.asked_for(KEY) == [0, 0]


async def test_a_touched_file_and_one_without_its_record(
    files: ModelFiles, source: Provider
) -> None:
    path = await files.fetch(MODEL, NAME)
    path.touch()
    await files.fetch(MODEL, NAME)
    assert source.asked_for(KEY) == [0, len(CONTENT)]
    (record,) = (files.cache_dir / ".fetch").iterdir()
    record.write_text("{")
    await files.fetch(MODEL, NAME)
    assert source.asked_for(KEY) == [0, len(CONTENT), 0]


async def test_a_cached_file_needs_no_provider(source: Provider, tmp_path: Path) -> None:
    async with ModelFiles(source.address, tmp_path, limits=QUICK) as files:
        await files.fetch(MODEL, NAME)
    async with ModelFiles(f"127.0.0.1:{free_port()}", tmp_path, limits=QUICK) as files:
        assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT


async def test_a_symlink_out_of_the_cache_is_not_followed(
    files: ModelFiles, source: Provider, tmp_path: Path
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
    files: ModelFiles, source: Provider
) -> None:
    async def enormous(provider, request, content, context):
        yield pb.ModelFileChunk(data=b"x" * 1000, total_size=1 << 60)
        await asyncio.Event().wait()

    source.usual = enormous
    with pytest.raises(ResourceExhaustedError, match=r"disk .* full: 1152921504606846976 bytes"):
        await files.fetch(MODEL, NAME)
    assert leftovers(files.cache_dir) == []


async def test_a_disk_that_fills_up_leaves_nothing(
    files: ModelFiles, source: Provider, file_size_limit
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
    async with ModelFiles(source.address, tmp_path / "file" / "cache", limits=QUICK) as files:
        with pytest.raises(InternalError, match="model cache cannot be used: Not a directory"):
            await files.fetch(MODEL, NAME)
    cache = tmp_path / "cache"
    async with ModelFiles(source.address, cache, limits=QUICK) as files:
        cache.mkdir()
        files.folder(MODEL).write_text("in the way")
        with pytest.raises(InternalError, match="model cache cannot be used") as caught:
            await files.fetch(MODEL, NAME)
    assert str(tmp_path) not in caught.value.message
    assert leftovers(cache) == []
