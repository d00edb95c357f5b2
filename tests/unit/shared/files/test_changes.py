"""Files that were republished: what the cache holds of them is what the provider has."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from shared.errors import ModelFileNotFoundError
from shared.files.client import MAX_QUESTIONS, ModelFiles
from tests.support.providers import CHUNK_BYTES, Provider, chunks, old
from tests.unit.shared.files.conftest import (
    CONTENT,
    KEY,
    MODEL,
    NAME,
    QUICK,
)

CHANGED = {
    "longer": CONTENT + b"more",
    "shorter": CONTENT[:-1],
    "empty": b"",
    "other bytes": CONTENT[::-1],
    "other bytes at the end": CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]),
}


async def knows_offsets_alone(provider, request, content, context):
    """Resumes, and tells no hash."""
    if request.offset > len(content):
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "offset")
    for chunk in chunks(content, request.offset):
        yield chunk


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
async def test_a_changed_file_is_fetched_anew(
    files: ModelFiles, source: Provider, changed: bytes
) -> None:
    await files.fetch(MODEL, NAME)
    source.files[KEY] = changed
    assert (await files.fetch(MODEL, NAME)).read_bytes() == changed
    assert source.asked_for(KEY) == [0, len(CONTENT), 0]


@pytest.mark.parametrize("changed", ["longer", "shorter", "empty", "other bytes"])
async def test_an_old_provider_shows_a_change_by_size_or_beginning(
    files: ModelFiles, source: Provider, changed: str
) -> None:
    source.usual = old
    await files.fetch(MODEL, NAME)
    await files.fetch(MODEL, NAME)
    assert source.asked_for(KEY) == [0, len(CONTENT)]
    source.files[KEY] = CHANGED[changed]
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CHANGED[changed]


async def test_without_hashes_a_size_tells(files: ModelFiles, source: Provider) -> None:
    source.usual = knows_offsets_alone
    await files.fetch(MODEL, NAME)
    source.files[KEY] = CHANGED["shorter"]
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CHANGED["shorter"]
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CHANGED["shorter"]
    assert source.asked_for(KEY) == [0, len(CONTENT), 0, len(CONTENT) - 1]


async def test_an_answer_from_nowhere_in_the_file_is_no_agreement(
    files: ModelFiles, source: Provider
) -> None:
    async def begins_before_the_file(provider, request, content, context):
        if request.offset:
            yield pb.ModelFileChunk(data=content[:1], offset=-1, total_size=len(content))
            return
        for chunk in chunks(content, 0):
            yield chunk

    source.usual = begins_before_the_file
    await files.fetch(MODEL, NAME)
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    assert source.asked_for(KEY) == [0, len(CONTENT), 0]


async def test_a_file_that_is_gone_is_removed(files: ModelFiles, source: Provider) -> None:
    path = await files.fetch(MODEL, NAME)
    del source.files[KEY]
    with pytest.raises(ModelFileNotFoundError):
        await files.fetch(MODEL, NAME)
    assert not path.exists()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_a_provider_that_cannot_be_asked_changes_nothing(
    files: ModelFiles, source: Provider, code: grpc.StatusCode
) -> None:
    async def refuses(provider, request, content, context):
        await context.abort(code, "not now")
        yield pb.ModelFileChunk()

    await files.fetch(MODEL, NAME)
    source.usual = refuses
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    await files.refresh(MODEL)
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT


async def test_a_change_that_breaks_off_leaves_the_old_file(
    files: ModelFiles, source: Provider
) -> None:
    path = await files.fetch(MODEL, NAME)
    source.files[KEY] = CHANGED["other bytes"]
    begun = asyncio.Event()

    async def stops(provider, request, content, context):
        for chunk in chunks(content, request.offset, sha256="0" * 64)[:2]:
            yield chunk
        if not request.offset:
            begun.set()
            await asyncio.Event().wait()

    source.usual = stops
    fetch = asyncio.create_task(files.fetch(MODEL, NAME))
    await begun.wait()
    fetch.cancel()
    await asyncio.wait((fetch,))
    assert path.read_bytes() == CONTENT


async def test_a_refresh_makes_all_files_those_of_the_provider(
    source: Provider, tmp_path: Path
) -> None:
    same, changed, gone = "config.json", "1_Pooling/config.json", "added_tokens.json"
    for name in (same, changed, gone):
        source.files[f"{MODEL}/{name}"] = name.encode()
    async with ModelFiles(source.address, tmp_path, limits=QUICK) as files:
        for name in (same, changed, gone):
            await files.fetch(MODEL, name)
        await files.fetch(MODEL, NAME)
        source.files[f"{MODEL}/{changed}"] = b"changed"
        source.files[KEY] = CHANGED["other bytes at the end"]
        del source.files[f"{MODEL}/{gone}"]
        await files.refresh(MODEL)
        folder = files.folder(MODEL)
        assert (folder / same).read_bytes() == same.encode()
        assert (folder / changed).read_bytes() == b"changed"
        assert (folder / NAME).read_bytes() == CHANGED["other bytes at the end"]
        assert not (folder / gone).exists()
        assert source.asked_for(f"{MODEL}/{same}") == [0, len(same)]
        await files.refresh("nobody/nothing")


async def test_the_hash_of_a_file_that_comes_is_waited_for(
    files: ModelFiles, source: Provider
) -> None:
    go_on = asyncio.Event()

    async def in_two(provider, request, content, context):
        for number, chunk in enumerate(chunks(content)):
            if number == 2:
                await go_on.wait()
            yield chunk

    source.usual = in_two
    async with files.open(MODEL, NAME) as reader:
        assert reader.total_size == len(CONTENT) > 2 * CHUNK_BYTES
        assert reader.sha256 == ""
        hash_ = asyncio.create_task(reader.whole_sha256())
        go_on.set()
        known = await hash_
    async with files.open(MODEL, NAME) as again:
        assert again.sha256 == known


async def test_a_silent_provider_is_not_asked_about_each_file(
    files: ModelFiles, source: Provider
) -> None:
    async def silent(provider, request, content, context):
        await asyncio.Event().wait()
        yield pb.ModelFileChunk()

    names = [f"{number}.json" for number in range(20)]
    source.files |= {f"{MODEL}/{name}": b"{}" for name in names}
    for name in names:
        await files.fetch(MODEL, name)
    source.usual = silent
    files.limits = replace(QUICK, first_chunk_seconds=0.2)
    source.requests.clear()
    await files.refresh(MODEL)
    assert 0 < len(source.requests) <= MAX_QUESTIONS
    source.requests.clear()
    other = "org/other"
    source.files |= {f"{other}/{name}": b"{}" for name in names}
    assert await files.absent(other, names) == set()
    assert 0 < len(source.requests) <= MAX_QUESTIONS
