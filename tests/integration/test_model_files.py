"""GetModelFile of model_mgmt_svc: its own copy, else what comes from the source as it comes."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from ml import model_management_pb2 as pb
from shared.files.client import ModelFiles
from shared.files.snapshot import snapshot
from shared.model_ids import folder_name
from tests.support.folders import MakeFolder
from tests.support.model_mgmt import ModelMgmt, failure_of, model_mgmt
from tests.support.processes import free_port, process, ready_channel, rss_bytes
from tests.support.providers import CHUNK_BYTES, Provider, chunks, honest, old
from tests.support.waiting import until

NAME = "model.safetensors"
CONTENT = random.Random(3).randbytes(30 * CHUNK_BYTES + 5)
Code = grpc.StatusCode


# One service for all tests here; each has a model of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")
_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    module_folder: MakeFolder,
) -> AsyncIterator[tuple[Provider, ModelMgmt]]:
    folder = module_folder("model_mgmt")
    async with (
        Provider().running() as provider,
        model_mgmt(folder, provider=provider.address) as service,
    ):
        yield provider, service


@pytest.fixture
def source(running: tuple[Provider, ModelMgmt]) -> Provider:
    source, _ = running
    source.behaviours.clear()
    source.usual = honest
    source.cancelled = 0
    return source


@pytest.fixture
def service(running: tuple[Provider, ModelMgmt]) -> ModelMgmt:
    return running[1]


@pytest.fixture
def model(source: Provider) -> str:
    model_id = f"org/name{next(_numbers)}"
    contents = {NAME: CONTENT, "config.json": b"{}", "empty": b""}
    source.files |= {f"{model_id}/{name}": content for name, content in contents.items()}
    return model_id


def content_of(messages: list[pb.ModelFileChunk], offset: int = 0) -> bytes:
    """The bytes of an answer, each message checked against the contract."""
    total = messages[0].total_size
    position = offset
    for message in messages:
        assert (message.offset, message.total_size) == (position, total)
        assert len(message.data) <= CHUNK_BYTES
        position += len(message.data)
    assert position == total
    assert [message.is_last for message in messages] == [False] * (len(messages) - 1) + [True]
    return b"".join(message.data for message in messages)


async def test_a_file_comes_whole_and_the_second_time_from_the_copy(
    service: ModelMgmt, model: str, source: Provider
) -> None:
    for _ in range(2):
        messages = await service.file(model, NAME)
        assert content_of(messages) == CONTENT
        assert messages[0].sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert source.asked_for(f"{model}/{NAME}") == [0]


async def test_the_rest_of_a_file(service: ModelMgmt, model: str) -> None:
    # The first while it comes, the others from the copy.
    for offset in (1, CHUNK_BYTES, 1_024_001, len(CONTENT) - 1, len(CONTENT)):
        assert content_of(await service.file(model, NAME, offset), offset) == CONTENT[offset:]


async def test_an_empty_file_is_one_message(service: ModelMgmt, model: str) -> None:
    (message,) = await service.file(model, "empty")
    assert (message.data, message.total_size, message.is_last) == (b"", 0, True)


async def test_what_is_refused(service: ModelMgmt, model: str) -> None:
    bad_paths = (
        "../../../etc/passwd",
        "/etc/passwd",
        "a/../../x",
        "..\\x",
        "a\0",
        "C:/x",
        "x" * 5000,
    )
    for path, offset, code, reason, field in (
        (NAME, -1, Code.INVALID_ARGUMENT, "OUT_OF_RANGE", "offset"),
        (NAME, len(CONTENT) + 1, Code.INVALID_ARGUMENT, "OUT_OF_RANGE", "offset"),
        ("nothing.json", 0, Code.NOT_FOUND, "FILE_NOT_FOUND", ""),
        ("", 0, Code.INVALID_ARGUMENT, "MISSING_FIELD", "file_path"),
        *((path, 0, Code.INVALID_ARGUMENT, "INVALID_PATH", "file_path") for path in bad_paths),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.file(model, path, offset)
        failure = failure_of(caught.value)
        assert (failure.code, failure.reason, failure.field) == (code, reason, field)


async def test_symlinks_out_of_the_copy_are_refused(
    service: ModelMgmt, model: str, tmp_path: Path
) -> None:
    await service.file(model, NAME)
    folder = service.cache / folder_name(model)
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    for path in ("link", "folder/secret"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.file(model, path)
        assert failure_of(caught.value).reason == "INVALID_PATH"


async def test_the_first_bytes_come_while_the_rest_is_on_its_way(
    service: ModelMgmt, model: str, source: Provider
) -> None:
    go_on = asyncio.Event()

    async def in_two(provider, request, content, context):
        for number, chunk in enumerate(chunks(content)):
            if number == 3:
                await go_on.wait()
            yield chunk

    source.usual = in_two
    received = b""
    async for chunk in service.stub.GetModelFile(
        pb.ModelFileRequest(model_id=model, file_path=NAME)
    ):
        received += chunk.data
        if len(received) == 3 * CHUNK_BYTES:
            go_on.set()
    assert received == CONTENT


async def test_callers_at_once_are_one_fetch(
    service: ModelMgmt, model: str, source: Provider
) -> None:
    answers = await asyncio.gather(*(service.file(model, NAME) for _ in range(10)))
    assert all(content_of(messages) == CONTENT for messages in answers)
    assert source.asked_for(f"{model}/{NAME}") == [0]


async def test_a_source_that_dies_half_way_is_not_noticed(
    service: ModelMgmt, model: str, source: Provider
) -> None:
    async def dies(provider, request, content, context):
        for chunk in chunks(content, request.offset)[:7]:
            yield chunk
        await context.abort(Code.UNAVAILABLE, "Socket closed")

    source.behaviours = [dies, dies]
    assert content_of(await service.file(model, NAME)) == CONTENT
    assert source.asked_for(f"{model}/{NAME}") == [0, 7 * CHUNK_BYTES, 14 * CHUNK_BYTES]


async def test_an_old_source_that_dies_half_way_is_told(
    service: ModelMgmt, model: str, source: Provider
) -> None:
    begun = asyncio.Event()

    async def dies(provider, request, content, context):
        for chunk in chunks(content)[:7]:
            yield chunk
        await begun.wait()
        await context.abort(Code.UNAVAILABLE, "Socket closed")

    source.behaviours = [dies]
    source.usual = old
    call = service.stub.GetModelFile(pb.ModelFileRequest(model_id=model, file_path=NAME))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            begun.set()  # what the caller has may be of another version than what comes then
    assert failure_of(caught.value).code == Code.UNAVAILABLE  # safe to try again
    assert content_of(await service.file(model, NAME)) == CONTENT


async def test_a_source_that_lies_is_told_and_nothing_is_served(
    service: ModelMgmt, model: str, source: Provider
) -> None:
    async def lies(provider, request, content, context):
        for chunk in chunks(content, sha256=hashlib.sha256(b"other").hexdigest()):
            yield chunk

    before = files_in(service.cache)
    source.usual = lies
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.file(model, NAME)
    failure = failure_of(caught.value)
    assert (failure.code, failure.reason) == (Code.INTERNAL, "PROVIDER_FAULT")
    [record] = service.cache.glob(".quarantine/*.json")
    assert model in record.read_text()
    shutil.rmtree(record.parent)
    assert files_in(service.cache) == before


async def test_a_caller_that_goes_away_ends_the_fetch(
    service: ModelMgmt, model: str, source: Provider
) -> None:
    async def endless(provider, request, content, context):
        for chunk in chunks(content)[:-1]:
            yield chunk
        await asyncio.Event().wait()

    source.usual = endless
    call = service.stub.GetModelFile(pb.ModelFileRequest(model_id=model, file_path=NAME))
    await call.read()
    call.cancel()
    await until(lambda: source.cancelled == 1)


async def test_a_damaged_copy_is_not_passed_on(
    service: ModelMgmt, model: str, source: Provider
) -> None:
    await service.file(model, NAME)
    damaged = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    place = service.cache / folder_name(model) / NAME
    place.chmod(0o644)  # nobody may write to it
    place.write_bytes(damaged)
    assert content_of(await service.file(model, NAME)) == CONTENT
    assert source.asked_for(f"{model}/{NAME}") == [0, 0]


async def test_a_worker_gets_its_snapshot_through_it(
    service: ModelMgmt, model: str, source: Provider, tmp_path: Path
) -> None:
    async with ModelFiles(service.address, tmp_path / "worker") as files:
        folder = await snapshot(files, model)
    assert (folder / NAME).read_bytes() == CONTENT
    assert (folder / "config.json").read_bytes() == b"{}"


async def test_a_killed_service_goes_on_where_it_was(source: Provider, tmp_path: Path) -> None:
    content = CONTENT[: 9 * CHUNK_BYTES]
    source.files["org/killed/" + NAME] = content

    async def stops(provider, request, content, context):
        for chunk in chunks(content, request.offset)[:4]:
            yield chunk
        await asyncio.Event().wait()

    source.usual = stops
    async with model_mgmt(tmp_path, provider=source.address) as service:
        call = service.stub.GetModelFile(pb.ModelFileRequest(model_id="org/killed", file_path=NAME))
        await call.read()
        await until(lambda: part_sizes(service.cache) == [4 * CHUNK_BYTES])
        service.process.kill()
    source.usual = honest
    async with model_mgmt(tmp_path, provider=source.address) as service:
        assert content_of(await service.file("org/killed", NAME)) == content
    assert source.asked_for("org/killed/" + NAME) == [0, 4 * CHUNK_BYTES]


async def test_memory_stays_flat_while_a_gigabyte_passes(
    record_property,
) -> None:
    size, port = 1 << 30, free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        process("-m", "tests.support.sparse_provider", str(port), str(size), env={}),
    ):
        source = f"127.0.0.1:{port}"
        async with ready_channel(source), model_mgmt(Path(folder), provider=source) as service:
            before = peak = rss_bytes(service.process.pid)
            start, received = time.monotonic(), 0
            async for chunk in service.stub.GetModelFile(
                pb.ModelFileRequest(model_id="org/name", file_path=NAME)
            ):
                received += len(chunk.data)
                if chunk.offset % (100 * CHUNK_BYTES) == 0:
                    peak = max(peak, rss_bytes(service.process.pid))
            seconds = time.monotonic() - start
    record_property("megabytes_per_second", round(size / seconds / 1e6))
    record_property("grown_megabytes", round((peak - before) / 1e6, 1))
    assert received == size
    assert peak - before < 20_000_000


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def part_sizes(cache: Path) -> list[int]:
    return [part.stat().st_size for part in cache.rglob("*.part")]
