"""The provider of a run is honest, and each of its faults is what its name says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from ml import model_management_pb2_grpc as pb_grpc
from tests.chaos.provider import HOLD_SHARE, SLOW_BYTES, Behaviour, FaultyProvider, held
from tests.support.waiting import until
from tools.dev_provider.service import add_to_server

CONTENT = bytes(range(256)) * 6000
MODEL = "org/model"


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[pb_grpc.ModelManagementServiceStub]:
    """Of a provider of `tmp_path`."""
    folder = tmp_path / "text" / MODEL
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(CONTENT)
    server = grpc.aio.server()
    add_to_server(FaultyProvider(tmp_path), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pb_grpc.ModelManagementServiceStub(channel)
    await server.stop(None)


async def read(
    stub: pb_grpc.ModelManagementServiceStub, into: list[pb.ModelFileChunk] | None = None
) -> list[pb.ModelFileChunk]:
    """All chunks of the file; those so far are in `into`."""
    chunks = [] if into is None else into
    async for chunk in stub.GetModelFile(pb.ModelFileRequest(model_id=MODEL, file_path="file")):
        chunks.append(chunk)
    return chunks


def joined(chunks: list[pb.ModelFileChunk]) -> bytes:
    """The data, if each chunk is where the one before it ends."""
    data = b""
    for chunk in chunks:
        assert chunk.offset == len(data)
        data += chunk.data
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    return data


async def test_an_honest_one(stub: pb_grpc.ModelManagementServiceStub) -> None:
    chunks = await read(stub)
    assert joined(chunks) == CONTENT
    assert chunks[0].sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert {chunk.total_size for chunk in chunks} == {len(CONTENT)}


@pytest.mark.parametrize("lie", ["bytes", "hash", "size"])
async def test_each_lie_is_about_one_thing(
    stub: pb_grpc.ModelManagementServiceStub, tmp_path: Path, lie: str
) -> None:
    Behaviour(lie=lie).write(tmp_path)
    chunks = await read(stub)
    right = {
        "bytes": joined(chunks) == CONTENT,
        "hash": chunks[0].sha256 == hashlib.sha256(CONTENT).hexdigest(),
        "size": chunks[0].total_size == len(CONTENT),
    }
    assert [name for name, holds in right.items() if not holds] == [lie]


async def test_a_file_is_held_in_the_middle_and_goes_on(
    stub: pb_grpc.ModelManagementServiceStub, tmp_path: Path
) -> None:
    Behaviour(hold=MODEL).write(tmp_path)
    chunks: list[pb.ModelFileChunk] = []
    reading = asyncio.create_task(read(stub, chunks))
    await until(held(tmp_path).exists)
    assert not reading.done()
    Behaviour().write(tmp_path)
    assert joined(await reading) == CONTENT
    assert sum(len(chunk.data) for chunk in chunks if chunk.offset < HOLD_SHARE * len(CONTENT))


async def test_a_silent_one_sends_nothing_until_it_speaks(
    stub: pb_grpc.ModelManagementServiceStub, tmp_path: Path
) -> None:
    Behaviour(silent=True).write(tmp_path)
    chunks: list[pb.ModelFileChunk] = []
    reading = asyncio.create_task(read(stub, chunks))
    await asyncio.sleep(0.3)
    assert chunks == []
    Behaviour().write(tmp_path)
    assert joined(await reading) == CONTENT


async def test_a_slow_one_sends_small_pieces(
    stub: pb_grpc.ModelManagementServiceStub, tmp_path: Path
) -> None:
    Behaviour(slow=True).write(tmp_path)
    chunks: list[pb.ModelFileChunk] = []
    reading = asyncio.create_task(read(stub, chunks))
    await until(lambda: bool(chunks))
    assert len(chunks[0].data) == SLOW_BYTES
    Behaviour().write(tmp_path)
    assert joined(await reading) == CONTENT
