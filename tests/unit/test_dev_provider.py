"""The development file provider, asked over the wire."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from ml import common_pb2 as common_pb
from ml import model_management_pb2 as pb
from ml import model_management_pb2_grpc as pb_grpc
from shared.rpc.interceptors import ErrorInterceptor
from tools.dev_provider import files
from tools.dev_provider.files import ModelFolder
from tools.dev_provider.service import CHUNK_BYTES, Fields, FileProvider, add_to_server

MODEL = "org/model"
CONTENT = bytes(range(256)) * 1000  # 2.5 chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()

Start = Callable[[Fields], Awaitable[pb_grpc.ModelManagementServiceStub]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "org" / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "weights").write_bytes(CONTENT)
    (model / "empty").touch()
    (model / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "secret").write_text("not a model's file")
    (model / "link").symlink_to(tmp_path / "secret")
    return tmp_path


@pytest.fixture
async def start(folder: Path) -> AsyncIterator[Start]:
    running: list[tuple[grpc.aio.Server, grpc.aio.Channel]] = []

    async def start(fields: Fields) -> pb_grpc.ModelManagementServiceStub:
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        provider = FileProvider(ModelFolder(folder), fields)
        add_to_server(provider, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        running.append((server, channel))
        return pb_grpc.ModelManagementServiceStub(channel)

    yield start
    for server, channel in running:
        await channel.close()
        await server.stop(None)


@pytest.fixture
async def stub(start: Start) -> pb_grpc.ModelManagementServiceStub:
    return await start(Fields())


async def fetch(
    stub: pb_grpc.ModelManagementServiceStub, path: str, offset: int = 0, model: str = MODEL
) -> list[pb.ModelFileChunk]:
    request = pb.ModelFileRequest(model_id=model, file_path=path, offset=offset)
    return [chunk async for chunk in stub.GetModelFile(request)]


async def test_a_file_comes_in_order_in_chunks(stub: pb_grpc.ModelManagementServiceStub) -> None:
    chunks = await fetch(stub, "weights")
    assert b"".join(chunk.data for chunk in chunks) == CONTENT
    assert [chunk.offset for chunk in chunks] == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]
    assert {chunk.total_size for chunk in chunks} == {len(CONTENT)}
    assert [chunk.is_last for chunk in chunks] == [False, False, True]
    assert [chunk.sha256 for chunk in chunks] == [SHA256, "", ""]


async def test_an_empty_file_is_one_last_chunk(stub: pb_grpc.ModelManagementServiceStub) -> None:
    (chunk,) = await fetch(stub, "empty")
    assert (chunk.data, chunk.total_size, chunk.is_last) == (b"", 0, True)


async def test_a_file_in_a_folder(stub: pb_grpc.ModelManagementServiceStub) -> None:
    (chunk,) = await fetch(stub, "1_Pooling/config.json")
    assert chunk.data == b"{}"


@pytest.mark.parametrize("offset", [1, CHUNK_BYTES, len(CONTENT) - 1, len(CONTENT)])
async def test_an_offset_is_where_it_starts(
    stub: pb_grpc.ModelManagementServiceStub, offset: int
) -> None:
    chunks = await fetch(stub, "weights", offset)
    assert b"".join(chunk.data for chunk in chunks) == CONTENT[offset:]
    assert chunks[0].offset == offset
    assert chunks[0].sha256 == SHA256
    assert chunks[-1].is_last


@pytest.mark.parametrize("offset", [-1, len(CONTENT) + 1])
async def test_an_offset_outside_is_refused(
    stub: pb_grpc.ModelManagementServiceStub, offset: int
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await fetch(stub, "weights", offset)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_old_provider_knows_neither_offset_nor_hash(start: Start) -> None:
    stub = await start(Fields(offset=False, sha256=False))
    chunks = await fetch(stub, "weights", offset=1000)
    assert chunks[0].offset == 0
    assert not any(chunk.sha256 for chunk in chunks)
    assert b"".join(chunk.data for chunk in chunks) == CONTENT


async def test_the_hash_of_a_large_file_is_known_once_it_was_sent(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_HASH_AT_ONCE_BYTES", 10)
    stub = await start(Fields())
    assert (await fetch(stub, "weights", offset=1))[0].sha256 == ""
    assert (await fetch(stub, "weights"))[0].sha256 == ""
    assert (await fetch(stub, "weights"))[0].sha256 == SHA256


async def test_a_changed_file_has_another_hash(start: Start, folder: Path) -> None:
    stub = await start(Fields())
    await fetch(stub, "weights")
    (folder / MODEL / "weights").write_bytes(b"changed")
    (chunk,) = await fetch(stub, "weights")
    assert chunk.sha256 == hashlib.sha256(b"changed").hexdigest()


@pytest.mark.parametrize(
    ("model", "path", "code"),
    [
        (MODEL, "none", grpc.StatusCode.NOT_FOUND),
        (MODEL, "1_Pooling", grpc.StatusCode.NOT_FOUND),
        ("org/none", "weights", grpc.StatusCode.NOT_FOUND),
        (MODEL, "../../secret", grpc.StatusCode.INVALID_ARGUMENT),
        (MODEL, "/etc/passwd", grpc.StatusCode.INVALID_ARGUMENT),
        (MODEL, "link", grpc.StatusCode.INVALID_ARGUMENT),
        (MODEL, "", grpc.StatusCode.INVALID_ARGUMENT),
        ("../org/model", "weights", grpc.StatusCode.INVALID_ARGUMENT),
        ("", "weights", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_what_is_not_served(
    stub: pb_grpc.ModelManagementServiceStub, model: str, path: str, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await fetch(stub, path, model=model)
    assert failure.value.code() is code


async def test_the_other_rpcs_are_unimplemented(stub: pb_grpc.ModelManagementServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.GetLoadedModels(common_pb.EmptyRequest())
    assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def of_revision(stub: pb_grpc.ModelManagementServiceStub, revision: str) -> tuple[bytes, str]:
    request = pb.ModelFileRequest(model_id=MODEL, file_path="empty", revision=revision)
    (chunk,) = [chunk async for chunk in stub.GetModelFile(request)]
    return chunk.data, chunk.revision


async def test_a_revision_has_a_folder_beside_the_default(start: Start, folder: Path) -> None:
    for name, content in (("model@v2", b"two"), ("model@refs%2Fpr%2F1", b"pr")):
        (folder / "org" / name).mkdir()
        (folder / "org" / name / "empty").write_bytes(content)
    stub = await start(Fields())
    assert await of_revision(stub, "") == (b"", "")
    assert await of_revision(stub, "main") == (b"", "main")
    assert await of_revision(stub, "v2") == (b"two", "v2")
    assert await of_revision(stub, "refs/pr/1") == (b"pr", "refs/pr/1")
    for revision, code in (("v3", "NOT_FOUND"), ("../secret", "INVALID_ARGUMENT")):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await of_revision(stub, revision)
        assert failure.value.code().name == code
    old = await start(Fields(revision=False))
    assert await of_revision(old, "v2") == (b"", "")
