"""One store for the services on a machine: files are linked from model_mgmt_svc's cache."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from prometheus_client import REGISTRY

from ml import model_management_pb2 as pb
from ml.internal import store_pb2
from model_mgmt_svc.service import ModelManagementServicer, add_servicer
from shared.errors import (
    InvalidArgumentError,
    InvalidPathError,
    ModelFileNotFoundError,
    ServiceError,
)
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from shared.files.space import CacheSpace
from shared.model_ids import ModelId
from shared.rpc.interceptors import ErrorInterceptor
from tests.support.providers import CHUNK_BYTES, Context, Provider, chunks
from tests.support.waiting import until

A, B = ModelId("org/a"), ModelId("org/b")
NAME = "model.safetensors"
CONTENT = random.Random(14).randbytes(5 * CHUNK_BYTES + 3)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = FetchLimits(
    patience_seconds=0, backoff_seconds=0.01, first_chunk_seconds=60, stall_seconds=60
)


class _WithoutStore(ModelManagementServicer):
    """An older one."""

    async def Provide(self, request: object, context: Any) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        yield


class _WithoutAbsent(ModelManagementServicer):
    """Another older one."""

    async def Absent(self, request: object, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")


class _Restarting(ModelManagementServicer):
    """One that goes away more often than a fetch tries in a row, each time a little farther."""

    asked = 0

    async def Provide(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.asked += 1
        if self.asked <= 2 * QUICK.attempts:
            yield store_pb2.ProvideResponse(bytes_fetched=self.asked, bytes_total=len(CONTENT))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "")
        async for step in super().Provide(request, context):
            yield step


@contextlib.asynccontextmanager
async def serving(files: ModelFiles, kind: type[ModelManagementServicer]) -> AsyncIterator[str]:
    """The RPCs of files of model_mgmt_svc."""
    nothing = cast(Any, None)
    servicer = kind(*(files, *[nothing] * 5), chunk_bytes=CHUNK_BYTES, max_file_streams=4)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    add_servicer(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class Machine:
    """An application, model_mgmt_svc's files, and those of a service beside it."""

    def __init__(self, root: Path) -> None:
        self.source = Provider({f"{A}/{NAME}": CONTENT, f"{B}/{NAME}": CONTENT})
        self.store_dir, self.cache_dir = root / "model_mgmt", root / "text"

    @contextlib.asynccontextmanager
    async def running(
        self, kind: type[ModelManagementServicer] = ModelManagementServicer
    ) -> AsyncIterator[tuple[ModelFiles, ModelFiles]]:
        async with (
            self.source.running() as source,
            ModelFiles(source.address, self.store_dir, limits=QUICK) as own,
            serving(own, kind) as address,
            ModelFiles(
                address,
                self.cache_dir,
                limits=QUICK,
                space=CacheSpace(self.cache_dir, 1 << 30, store=self.store_dir),
            ) as text,
        ):
            yield own, text

    @property
    def blob(self) -> Path:
        return self.store_dir / ".blobs" / SHA256

    def streamed(self) -> int:
        """Calls that asked the application for content."""
        return sum(request.offset < len(CONTENT) for request in self.source.requests)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_a_service_on_the_machine_has_a_link_and_models_share_it(machine: Machine) -> None:
    async with machine.running() as (_, text):
        seen: list[tuple[int, int]] = []
        place = await text.fetch(A, NAME, lambda *step: seen.append(step))
        assert place.read_bytes() == CONTENT
        assert place.is_relative_to(machine.cache_dir)
        assert place.samefile(machine.blob)
        assert seen[-1] == (len(CONTENT), len(CONTENT))
        other = await text.fetch(B, NAME)
        assert other.samefile(place)
        # Four names and the blob: once on the disk.
        assert machine.blob.stat().st_nlink == 5
        assert stat.S_IMODE(place.stat().st_mode) == 0o444
        assert text.space.used_bytes() == 0
        assert REGISTRY.get_sample_value("model_cache_saved_bytes") == 2 * len(CONTENT)
        # The second was found by the hash in its first chunk.
        sent = [request.offset for request in machine.source.requests]
        assert len(sent) == 2
        assert await text.fetch(A, NAME) == place


async def test_what_the_store_removes_stays_with_the_service_and_counts_there(
    machine: Machine,
) -> None:
    async with machine.running() as (own, text):
        place = await text.fetch(A, NAME)
        full = CacheSpace(machine.store_dir, len(CONTENT))
        full.make_room(1)
        assert not machine.blob.exists()
        assert own.space.used_bytes() == 0
        assert place.read_bytes() == CONTENT
        assert text.space.used_bytes() == len(CONTENT)


async def test_the_service_removes_its_link_and_the_store_keeps_the_file(machine: Machine) -> None:
    async with machine.running() as (own, text):
        await text.fetch(A, NAME)
        extra = machine.cache_dir / "org--c"
        extra.mkdir()
        (extra / "weights").write_bytes(bytes(100))
        # Its link would give nothing back, so what is its own goes.
        CacheSpace(machine.cache_dir, 100, store=machine.store_dir).make_room(1)
        assert not extra.exists()
        assert (machine.cache_dir / "org--a" / NAME).exists()
        (machine.cache_dir / "org--a" / NAME).unlink()
        assert (await own.fetch(A, NAME)).read_bytes() == CONTENT


async def test_a_republished_file_is_a_new_one(machine: Machine) -> None:
    """Nothing that a service has checked changes under its name, or while it is open."""
    newer = CONTENT[::-1]
    async with machine.running() as (own, text):
        place = await text.fetch(A, NAME)
        other = await text.fetch(B, NAME)
        machine.source.files[f"{A}/{NAME}"] = newer
        with place.open("rb") as reader:
            await own.refresh(A)
            assert place.read_bytes() == CONTENT
            assert (await text.fetch(A, NAME)).read_bytes() == newer
            assert reader.read() == CONTENT
        assert other.read_bytes() == CONTENT
        assert place.samefile(machine.store_dir / "org--a" / NAME)
        assert place.samefile(machine.blob.with_name(hashlib.sha256(newer).hexdigest()))


@pytest.mark.parametrize("kind", ["damaged", "link", "gone"])
async def test_what_cannot_be_trusted_is_received_instead(machine: Machine, kind: str) -> None:
    async with machine.running() as (own, text):
        place = await own.fetch(A, NAME)
        if kind == "damaged":
            machine.blob.unlink()
            machine.blob.write_bytes(bytes(len(CONTENT)))
        elif kind == "link":  # to a file of the right content, elsewhere
            outside = machine.store_dir.parent / "outside"
            outside.write_bytes(CONTENT)
            machine.blob.unlink()
            machine.blob.symlink_to(outside)
        else:
            text.space.store = CacheSpace(machine.store_dir.parent / "nothing").blobs
        found = await text.fetch(A, NAME)
        assert found.read_bytes() == CONTENT
        assert not found.is_symlink()
        assert not found.samefile(place)


async def test_a_provider_without_a_store_is_asked_as_before(machine: Machine) -> None:
    async with machine.running(_WithoutStore) as (_, text):
        place = await text.fetch(A, NAME)
        assert place.read_bytes() == CONTENT
        assert not place.samefile(machine.blob)


async def test_what_the_store_has_brought_meanwhile_counts_as_progress(machine: Machine) -> None:
    async with machine.running(_Restarting) as (_, text):
        place = await text.fetch(A, NAME)
        assert place.samefile(machine.blob)


async def test_errors_are_those_of_a_stream(machine: Machine) -> None:
    async with machine.running() as (_, text):
        with pytest.raises(ModelFileNotFoundError):
            await text.fetch(A, "nothing.json")
        for path in ("../x", "/etc/passwd", ".blobs/../../x"):
            with pytest.raises(InvalidPathError):
                await text.fetch(A, path)
        with pytest.raises(ServiceError):
            await text.fetch(ModelId("org/none"), NAME)
    assert not list(machine.cache_dir.glob(".fetch/*.link"))


async def test_a_cancelled_fetch_stops_that_of_the_store(machine: Machine) -> None:
    async def slow(
        provider: Provider, request: pb.ModelFileRequest, content: bytes, context: Context
    ) -> AsyncIterator[pb.ModelFileChunk]:
        for chunk in chunks(content, request.offset)[:3]:
            yield chunk
        await asyncio.Event().wait()

    machine.source.usual = slow
    async with machine.running() as (_, text):
        seen: list[int] = []
        fetch = asyncio.create_task(
            text.fetch(A, NAME, lambda fetched, total: seen.append(fetched))
        )
        await until(lambda: bool(seen) and seen[-1] == 3 * CHUNK_BYTES)
        fetch.cancel()
        await asyncio.wait({fetch})
        await until(lambda: machine.source.cancelled == 1)


async def test_what_nobody_has_is_asked_for_in_one_call(machine: Machine) -> None:
    machine.source.files[f"{A}/config.json"] = b"{}"
    async with machine.running() as (own, text):
        await text.fetch(A, NAME)
        machine.source.requests.clear()
        # One is here, one is with the provider, and two are not there.
        names = [NAME, "config.json", "vocab.txt", "1_Pooling/config.json"]
        assert await text.absent(A, names) == {"vocab.txt", "1_Pooling/config.json"}
        assert sorted(each.file_path for each in machine.source.requests) == sorted(names[1:])
        assert not (own.folder(A) / "config.json").exists()
        with pytest.raises(InvalidPathError):
            await text.absent(A, ["../config.json"])
        with pytest.raises(InvalidArgumentError, match="1001 files are asked for, of at most 1000"):
            await text.absent(A, [f"{number}.json" for number in range(1001)])


async def test_a_provider_that_fails_has_everything_for_all_we_know(machine: Machine) -> None:
    async def full(
        provider: Provider, request: pb.ModelFileRequest, content: bytes, context: Context
    ) -> AsyncIterator[pb.ModelFileChunk]:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "")
        yield

    machine.source.usual = full
    async with machine.running() as (_, text):
        assert await text.absent(A, [NAME, "vocab.txt"]) == {"vocab.txt"}
    async with machine.running(_WithoutAbsent) as (_, text):
        assert await text.absent(A, ["vocab.txt"]) == set()
