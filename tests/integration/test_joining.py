"""Replicas that join others: real services, real models, one control plane."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ml.internal import worker_pb2, worker_pb2_grpc
from tests.support import tiny_text
from tests.support.model_mgmt import ModelMgmt, model_mgmt
from tests.support.processes import free_port, process, ready_channel
from tests.support.providers import Provider
from tests.support.stack import CONVERTED, TEXT, VISION
from tests.support.waiting import until

SERVING = health_pb2.HealthCheckResponse.SERVING
LIMIT = 300.0


@dataclass(frozen=True)
class Case:
    """A service, and a model that it can load."""

    kind: str
    name: str
    model_id: str
    pipeline_type: str


CASES = [
    Case("text", TEXT, "tiny/llama", "text-generation"),
    Case("vision", VISION, "mediapipe/face", "face-detection"),
]


class Replica:
    """One process of a service."""

    def __init__(self, case: Case, channel: grpc.aio.Channel) -> None:
        self.case = case
        self.health = health_pb2_grpc.HealthStub(channel)
        self.worker = worker_pb2_grpc.ModelWorkerStub(channel)

    async def serves(self, name: str) -> bool:
        answer = await self.health.Check(health_pb2.HealthCheckRequest(service=name))
        return answer.status == SERVING

    async def takes_calls(self) -> bool:
        return await self.serves(self.case.name)

    async def ready_models(self) -> list[str]:
        models = (await self.worker.List(worker_pb2.ListRequest())).models
        return [m.model_id for m in models if m.state == worker_pb2.MODEL_STATE_READY]


@contextlib.asynccontextmanager
async def replica(
    case: Case, folder: Path, port: int, provider: str, **settings: str
) -> AsyncIterator[Replica]:
    """A replica that accepts connections; those of a kind share their caches and conversions."""
    values = {
        "port": str(port),
        "metrics_port": "0",
        "file_provider_addr": provider,
        "cache_dir": str(folder / "cache"),
        "converted_dir": str(CONVERTED),  # of text_svc
        "model_dir": str(folder / "none"),
        "drain_seconds": "0",
        "admission_seconds": "3600",  # a busy control plane may be silent for long
        **settings,
    }
    env = {f"{case.kind}_{name}".upper(): value for name, value in values.items()}
    with process("-m", f"{case.kind}_svc", env=env):
        async with ready_channel(f"127.0.0.1:{port}", LIMIT) as channel:
            yield Replica(case, channel)


@pytest.fixture(params=CASES, ids=lambda case: case.kind)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
async def provider(case: Case, tmp_path: Path, models: Path) -> AsyncIterator[Provider]:
    if case.kind == "vision":
        asset = "blaze_face_short_range.tflite"
        files = {f"{case.model_id}/{asset}": (models / "vision" / asset).read_bytes()}
    else:
        folder = tiny_text.save_llama(tmp_path / "llama")
        files = {f"{case.model_id}/{f.name}": f.read_bytes() for f in folder.iterdir()}
    async with Provider(files).running() as served:
        yield served


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture
async def plane(
    case: Case, tmp_path: Path, provider: Provider, ports: tuple[int, int]
) -> AsyncIterator[ModelMgmt]:
    addresses = {case.kind: ",".join(f"127.0.0.1:{port}" for port in ports)}
    async with model_mgmt(tmp_path / "plane", provider=provider.address, **addresses) as running:
        yield running


async def test_a_replica_takes_calls_when_it_has_what_the_other_has(
    case: Case, tmp_path: Path, plane: ModelMgmt, ports: tuple[int, int]
) -> None:
    async with replica(case, tmp_path, ports[0], plane.address) as first:
        await until(first.takes_calls, LIMIT)
        await plane.load(case.model_id, case.pipeline_type)
        async with replica(case, tmp_path, ports[1], plane.address) as second:
            await until(second.takes_calls, LIMIT)
            assert await second.ready_models() == [case.model_id]
            assert await first.takes_calls()


async def test_alone_it_takes_calls_before_its_models_are_back(
    case: Case, tmp_path: Path, plane: ModelMgmt, provider: Provider, ports: tuple[int, int]
) -> None:
    async with replica(case, tmp_path, ports[0], plane.address) as before:
        await until(before.takes_calls, LIMIT)
        await plane.load(case.model_id, case.pipeline_type)
    # It comes back with an empty cache, and nobody who has the files.
    provider.files.clear()
    folder = tmp_path / "empty"
    async with replica(case, folder, ports[0], f"127.0.0.1:{free_port()}") as again:
        await until(again.takes_calls, LIMIT)
        assert await again.ready_models() == []


async def test_without_a_control_plane_it_takes_calls_by_itself(case: Case, tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    settings = {"admission_seconds": "1.0"}
    async with replica(case, tmp_path, free_port(), nobody, **settings) as alone:
        await until(lambda: alone.serves(""), LIMIT)
        await until(alone.takes_calls, LIMIT)


async def test_while_it_waits_its_process_serves(case: Case, tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    settings = {"admission_seconds": "3600"}
    async with replica(case, tmp_path, free_port(), nobody, **settings) as waiting:
        await until(lambda: waiting.serves(""), LIMIT)
        await asyncio.sleep(0.5)
        assert not await waiting.takes_calls()
        await waiting.worker.Admit(worker_pb2.AdmitRequest())
        await until(waiting.takes_calls, LIMIT)
