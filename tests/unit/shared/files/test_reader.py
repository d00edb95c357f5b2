"""Reading a file while it comes: never more than is right."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from shared.errors import (
    InternalError,
    UnavailableError,
)
from shared.files.client import ModelFiles
from tests.support.providers import Provider, chunks, old
from tests.unit.shared.files.conftest import (
    CONTENT,
    CUT,
    MODEL,
    NAME,
    dies,
    leftovers,
)


async def test_a_reader_follows_a_file_that_is_still_coming(
    files: ModelFiles, source: Provider
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
    async with asyncio.timeout(60), files.open(MODEL, NAME) as reader:
        assert reader.total_size == len(CONTENT)
        async for block in reader.blocks():
            received += block
            if len(received) == CUT:
                assert not go_on.is_set()
                go_on.set()
    assert received == CONTENT
    assert (files.folder(MODEL) / NAME).read_bytes() == CONTENT


async def test_a_reader_is_told_when_the_content_changed_half_way(
    files: ModelFiles, source: Provider
) -> None:
    source.behaviours = [dies]
    source.usual = old  # begins again at 0, so that what was read may be of another version
    with pytest.raises(UnavailableError, match="changed at its source"):
        async with files.open(MODEL, NAME) as reader:
            async for _ in reader.blocks():
                pass


async def test_a_reader_never_gets_the_end_of_a_wrong_file(
    files: ModelFiles, source: Provider
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


async def test_a_reader_finds_damage_in_the_cache(files: ModelFiles, source: Provider) -> None:
    path = await files.fetch(MODEL, NAME)
    stat = path.stat()
    path.chmod(0o644)  # nobody may write to it
    path.write_bytes(CONTENT[:-1] + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    received = b""
    with pytest.raises(UnavailableError, match="damaged"):
        async with files.open(MODEL, NAME) as reader:
            async for block in reader.blocks():
                received += block
    assert len(received) < len(CONTENT)
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
