"""A cache keeps within its limit, and a full disk is told with the bytes and cleared."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from tests.support.attack import Attacks
from tests.support.model_mgmt import Failure, ModelMgmt, failure_of, model_mgmt
from tests.support.processes import free_port
from tests.support.providers import Provider, chunks, honest
from tests.support.text_service import text_service
from tests.support.tiny_models import build
from tests.support.waiting import until

MIB = 1 << 20
DISK = 40 * MIB
SIZE = 12 * MIB
RANDOM = random.Random(12).randbytes(SIZE - 1)
NAME = "model.safetensors"
TOO_LARGE = bytes(45 * MIB)
"""More than the disk has."""


def on_a_small_disk(cache: Path) -> tuple[str, ...]:
    """A program that is model_mgmt_svc with a disk of its own for its cache.

    Needs no privilege, but a kernel that lets users make namespaces.
    """
    mount = f"mount -t tmpfs -o size={DISK} tmpfs {cache}"
    run = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*run, f"mkdir -p {cache} && {mount}"], check=False).returncode:
        pytest.skip("this system lets nobody mount a small disk for the test")
    command = [*run, f"{mount} && exec {sys.executable} -m model_mgmt_svc"]
    return "-c", f"import os; os.execvp('unshare', {command!r})"


def file_of(letter: str) -> bytes:
    """A file of `SIZE` bytes, another one for each letter: equal ones are on the disk once."""
    return letter.encode() + RANDOM


def models_in(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("org--*")}


def half_files(cache: Path) -> list[Path]:
    return list(cache.glob(".fetch/*.part*"))


def remove(cache: Path, names: str) -> None:
    """Removes the files of models behind the service's back."""
    for name in names:
        for file in cache.glob(f"org--{name}/*"):
            file.unlink()


async def read(service: ModelMgmt, model_id: str) -> bytes:
    return b"".join([chunk.data for chunk in await service.file(model_id, NAME)])


def figures_of(url: str) -> dict[str, float]:
    """The metrics of a page that have no labels."""
    with urllib.request.urlopen(url) as page:
        lines = page.read().decode().splitlines()
    pairs = (line.split() for line in lines if line[0] != "#" and "{" not in line)
    return {name: float(value) for name, value in pairs}


async def refusal(service: ModelMgmt, model_id: str) -> Failure:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.file(model_id, NAME)
    return failure_of(caught.value)


async def test_a_full_disk(attack: Attacks, tmp_path: Path) -> None:
    """A full disk is cleared of what no model uses; else it is told, and no half file is left."""
    program = on_a_small_disk(tmp_path / "cache")
    files = {f"org/{name}/{NAME}": file_of(name) for name in "abcd"}
    files[f"org/large/{NAME}"] = TOO_LARGE
    async with (
        Provider(files).running() as source,
        model_mgmt(
            tmp_path, provider=source.address, program=program, CACHE_LIMIT_MB="1000"
        ) as service,
    ):
        cache = Path(f"/proc/{service.process.pid}/root{service.cache}")
        with attack("12 full disk", processes=[service.process], bystander=None) as seen:
            for name in "abcadb":
                assert await read(service, f"org/{name}") == file_of(name)
            assert models_in(cache) == {"org--a", "org--d", "org--b"}
            seen.say("4 models on a disk for 3: the least recently used went")

            failure = await refusal(service, "org/large")
            assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"{len(TOO_LARGE)} bytes are needed" in failure.message
            assert models_in(cache) == {"org--a", "org--d", "org--b"}
            assert half_files(cache) == []
            seen.say(f"told: {failure.message}")

            # Others fill the disk while a file is being fetched: first something can go, then not.
            for room in (True, False):
                await fills_up(service, source, cache, room)
            seen.say("filled by others in the middle of a file: went on, or told and cleared")


async def fills_up(service: ModelMgmt, source: Provider, cache: Path, room: bool) -> None:
    """The disk fills up during a fetch of org/c; `room` is whether unused models may go."""
    if not room:
        remove(cache, "abd")
    go_on = asyncio.Event()

    async def waits(provider, request, content, context) -> AsyncIterator[pb.ModelFileChunk]:
        for number, chunk in enumerate(chunks(content)):
            if number == 10:
                await go_on.wait()
            yield chunk

    source.behaviours = [waits]
    reading = asyncio.create_task(read(service, "org/c"))
    await until(lambda: any(part.stat().st_size for part in cache.glob(".fetch/*.part")))
    ballast = cache.parent / "cache" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(MIB))
    go_on.set()
    if room:
        assert await reading == file_of("c")
    else:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reading
        assert failure_of(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "bytes are needed" in failure_of(caught.value).message
        assert half_files(cache) == []
    ballast.unlink()
    assert await read(service, "org/c") == file_of("c")
    remove(cache, "c")


async def test_the_limit_of_a_cache(attack: Attacks, tmp_path: Path) -> None:
    """A cache has no more than its limit, and its metrics say how much it has."""
    files = {f"org/{name}/{NAME}": file_of(name) for name in "abcdef"}
    files[f"org/large/{NAME}"] = TOO_LARGE
    port = free_port()
    async with (
        Provider(files).running() as source,
        model_mgmt(
            tmp_path, provider=source.address, CACHE_LIMIT_MB="40", METRICS_PORT=str(port)
        ) as service,
    ):
        with attack("12 limit of a cache", processes=[service.process], bystander=None) as seen:
            for name in "abcdef":
                assert await read(service, f"org/{name}") == file_of(name)
                size = sum(path.stat().st_size for path in service.cache.rglob(NAME))
                assert size <= DISK
            failure = await refusal(service, "org/large")
            assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"of the {DISK} bytes that it may have (MODEL_MGMT_CACHE_LIMIT_MB)" in (
                failure.message
            )
            figures = await asyncio.to_thread(figures_of, f"http://127.0.0.1:{port}/metrics")
            assert figures["model_cache_limit_bytes"] == DISK
            assert 0 < figures["model_cache_bytes"] <= DISK
            assert figures["model_cache_evicted_bytes_total"] == 3 * SIZE
            seen.say(f"6 models of 12 MiB within 40 MiB; told: {failure.message}")


async def test_files_have_limits_of_the_process_too(tmp_path: Path) -> None:
    """A limit of the process on the size of files counts as a full disk."""
    code = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20)); "
        "runpy.run_module('model_mgmt_svc', run_name='__main__')"
    )
    async with (
        Provider({f"org/a/{NAME}": file_of("a"), "org/b/config.json": b"{}"}).running() as source,
        model_mgmt(tmp_path, provider=source.address, program=("-c", code)) as service,
    ):
        source.usual = honest
        failure = await refusal(service, "org/a")
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert half_files(service.cache) == []
        small = await service.file("org/b", "config.json")
        assert b"".join(chunk.data for chunk in small) == b"{}"


async def test_what_a_model_uses_stays(attack: Attacks, tmp_path: Path) -> None:
    """What a loaded model uses stays in a full cache, and goes once the model is unloaded."""
    names = ["org/a", "org/b", "org/c"]
    for name in names:
        folder = build("bert-nli", tmp_path / "models" / name)
        # A file that is fetched and not read.
        (folder / "source.spm").write_bytes(file_of(name[-1]))
    full = "of the 31457280 bytes that it may have (TEXT_CACHE_LIMIT_MB)"
    limit = {"TEXT_CACHE_LIMIT_MB": "30"}
    with (
        text_service(tmp_path / "models", tmp_path, limit) as service,
        attack("12 cache in use", processes=[service.process.pid], bystander=None) as seen,
    ):
        async with service.client() as client:
            for name in names[:2]:
                await client.load(name, "text-classification", engine="transformers")
            with pytest.raises(grpc.aio.AioRpcError, match=re.escape(full)) as caught:
                await client.load(names[2], "text-classification", engine="transformers")
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert models_in(tmp_path / "cache") >= {"org--a", "org--b"}
            await client.unload(names[0])
            await client.load(names[2], "text-classification", engine="transformers")
            assert models_in(tmp_path / "cache") == {"org--b", "org--c"}
            seen.say("third of two models: told; loaded after one was unloaded")
