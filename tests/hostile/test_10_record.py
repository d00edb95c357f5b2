"""A bad disk or a bad record of the desired models never keeps model_mgmt_svc down."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import sqlite3
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from tests.support.attack import Attacks
from tests.support.model_mgmt import ModelMgmt, model_mgmt
from tests.support.model_workers import ModelWorker
from tests.support.processes import free_port
from tests.support.waiting import until

MODEL = "org/held"
# Even root may not write then where the mode forbids it: without CAP_DAC_OVERRIDE and its like.
OBEYS_MODES = (
    "-c",
    (
        "import ctypes, os, sys\n"
        "for capability in 1, 2: ctypes.CDLL(None).prctl(24, capability)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'model_mgmt_svc'])"
    ),
)


@pytest.fixture
async def worker() -> AsyncIterator[ModelWorker]:
    async with ModelWorker().running() as served:
        yield served


def garbage(state: Path) -> None:
    (state / "desired_models.json").write_bytes(os.urandom(100_000))


def truncated(state: Path) -> None:
    (state / "desired_models.json").write_bytes(b'{"models": [{"model_id": "org/held", "pip')


def nested(state: Path) -> None:
    (state / "desired_models.json").write_bytes(b'{"models": ' + b"[" * 3_000_000)


def wrong_types(state: Path) -> None:
    (state / "desired_models.json").write_bytes(b'{"models": [3, {"model_id": {}}]}')


def pipe(state: Path) -> None:
    os.mkfifo(state / "desired_models.json")


def not_a_folder(state: Path) -> None:
    state.rmdir()
    state.write_bytes(b"")


def forbidden(state: Path) -> None:
    (state / "desired_models.json").write_bytes(b'{"models": []}')
    (state / "desired_models.json").chmod(0)
    state.chmod(0o500)


def locked_old_record(state: Path) -> None:
    connection = sqlite3.connect(state / "wishes.db", check_same_thread=False)
    connection.execute("CREATE TABLE wishes (model_id, pipeline_type, options)")
    connection.execute("BEGIN EXCLUSIVE")
    _open_databases.append(connection)


_open_databases: list[sqlite3.Connection] = []

SHAPES = (
    *(garbage, truncated, nested, wrong_types, pipe, not_a_folder, forbidden, locked_old_record),
)


async def test_it_starts_whatever_the_record_is(attack: Attacks, tmp_path: Path) -> None:
    """It starts with any record, and the models that replicas hold stay desired."""

    async def start(shape: Callable[[Path], None]) -> None:
        folder = tmp_path / shape.__name__
        (folder / "state").mkdir(parents=True)
        shape(folder / "state")
        async with ModelWorker().running() as worker:
            await held(worker)
            async with model_mgmt(
                folder, provider="127.0.0.1:1", text=worker.address, program=OBEYS_MODES
            ) as service:
                assert [model.model_id for model in await service.models()] == [MODEL]
                await until(lambda: worker.admitted)  # a round is done
                worker.restart()
                await until(lambda: MODEL in worker.models)
                assert dict(worker.loads[0].options) == {"dtype": "float32"}
                assert (await service.unload(MODEL)).success
                assert not worker.models
                assert service.process.poll() is None

    with attack("10 record of desired models, damaged", processes=[os.getpid()]) as seen:
        await asyncio.gather(*map(start, SHAPES))
        seen.say(f"{len(SHAPES)} bad records: it starts, and rebuilds them from the replicas")
    for connection in _open_databases:
        connection.close()
    assert (tmp_path / "garbage/state/desired_models.broken").stat().st_size == 100_000


async def held(worker: ModelWorker) -> None:
    """Makes the replica hold a model, as after a load by an earlier model_mgmt_svc."""
    async with grpc.aio.insecure_channel(worker.address) as channel:
        from ml.internal import worker_pb2, worker_pb2_grpc

        request = worker_pb2.LoadRequest(
            model_id=MODEL, pipeline_type="text-generation", options={"dtype": "float32"}
        )
        async for _ in worker_pb2_grpc.ModelWorkerStub(channel).Load(request):
            pass
    worker.loads.clear()


def limit_files(service: ModelMgmt, size: int) -> None:
    """No file that the service writes may be larger, as on a full disk."""
    hard = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (size, hard))


async def test_a_full_disk(attack: Attacks, worker: ModelWorker, tmp_path: Path) -> None:
    """On a full disk models are loaded and freed, and callers are told; later it is saved."""
    metrics = free_port()

    async def unsaved() -> bool:
        page = f"http://127.0.0.1:{metrics}/metrics"
        with await asyncio.to_thread(urllib.request.urlopen, page) as answer:
            return b"\nmodel_mgmt_unsaved 1.0" in answer.read()

    async with model_mgmt(
        tmp_path, provider="127.0.0.1:1", text=worker.address, METRICS_PORT=str(metrics)
    ) as service:
        with attack(
            "10 full disk",
            processes=[service.process.pid],
            address=service.address,
            bystander=["models"],
        ) as seen:
            await service.load("org/first")
            assert not await unsaved()
            limit_files(service, 1)
            message = (await service.load(MODEL)).message
            assert "cannot be saved (File too large)" in message
            assert await unsaved()
            message = (await service.unload("org/first")).message
            assert "after a restart of model_mgmt_svc it may be loaded again" in message
            assert set(worker.models) == {MODEL}
            limit_files(service, resource.RLIM_INFINITY)

            async def saved() -> bool:
                return not await unsaved()

            await until(saved)
            seen.say("LoadModel and UnloadModel work, and say that it cannot be saved")
        service.process.kill()
    worker.models.clear()
    async with model_mgmt(tmp_path, provider="127.0.0.1:1", text=worker.address) as service:
        await until(lambda: set(worker.models) == {MODEL})


async def test_killed_while_it_writes(attack: Attacks, worker: ModelWorker, tmp_path: Path) -> None:
    """Killed at any moment of a write, it has the record from before or after the write."""
    random.seed(10)
    record = tmp_path / "state" / "desired_models.json"

    async def change_until_killed(service: ModelMgmt) -> None:
        for number in range(10_000):
            try:
                await service.load(f"org/{number % 7}", options={"dtype": "float32"})
                await service.unload(f"org/{(number + 3) % 7}")
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:  # it was not loaded
                    return

    async def kill(service: ModelMgmt) -> None:
        await asyncio.sleep(random.uniform(0.2, 0.6))
        service.process.send_signal(signal.SIGKILL)

    with attack("10 killed while writing", processes=[os.getpid()]) as seen:
        for _ in range(3):
            async with model_mgmt(tmp_path, provider="127.0.0.1:1", text=worker.address) as one:
                killing = asyncio.create_task(kill(one))
                await asyncio.gather(*(change_until_killed(one) for _ in range(4)))
                await killing
            content = json.loads(record.read_bytes())
            assert all(entry["model_id"] for entry in content["models"])
        seen.say("3 times kill -9 during writes: the record is whole")
