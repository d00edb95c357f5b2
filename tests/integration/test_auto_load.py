"""Calls load the model that they ask for: two replicas of text_svc with room for one model each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2, transformers_pb2, transformers_pb2_grpc
from tests.support import tiny_models
from tests.support.model_mgmt import ModelMgmt, failure_of, model_mgmt
from tests.support.processes import free_port, process, ready_channel
from tests.support.providers import Provider, folder_files
from tests.support.waiting import until
from text_svc.models.loader import PROCESS_BYTES

A, B, NONE, OTHER = "tiny/a", "tiny/b", "tiny/none", "other/a"
START_SECONDS = 300.0
MIB = 1 << 20

pytestmark = pytest.mark.timeout(900)


@dataclass
class Replica:
    """A text_svc."""

    stub: transformers_pb2_grpc.TransformersServiceStub

    async def embed(self, model: str, seconds: float = START_SECONDS) -> list[float]:
        request = transformers_pb2.GenerateEmbeddingsRequest(model=model, texts=["a word"])
        answer = await self.stub.GenerateEmbeddings(request, timeout=seconds)
        return list(answer.embeddings[0].values)

    async def refusal(self, model: str) -> str:
        """The reason of the error of a call."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.embed(model)
        return failure_of(caught.value).reason


@contextlib.asynccontextmanager
async def text_service(folder: Path, port: int, plane: str) -> AsyncIterator[Replica]:
    values = {
        "PORT": str(port),
        "METRICS_PORT": "0",
        "FILE_PROVIDER_ADDR": plane,
        "CACHE_DIR": str(folder / "cache"),
        "CONVERTED_DIR": str(folder.parent / "converted"),
        "DRAIN_SECONDS": "0",
        # For one model, and a part of another.
        "MEMORY_BUDGET_MB": str(int(1.5 * PROCESS_BYTES) // MIB),
    }
    env = {f"TEXT_{name}": value for name, value in values.items()}
    with process("-m", "text_svc", env=env):
        async with ready_channel(f"127.0.0.1:{port}", START_SECONDS) as channel:
            yield Replica(transformers_pb2_grpc.TransformersServiceStub(channel))


async def test_calls_load_their_models(tmp_path: Path) -> None:
    files = folder_files(tiny_models.build("bert", tmp_path / "bert"), A)
    for model_id in (B, OTHER):
        files |= {path.replace(A, model_id, 1): content for path, content in files.items()}
    ports = [free_port(), free_port()]
    addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
    async with contextlib.AsyncExitStack() as stack:
        provider = await stack.enter_async_context(Provider(files).running())
        plane_stack = await stack.enter_async_context(contextlib.AsyncExitStack())
        plane = await plane_stack.enter_async_context(
            model_mgmt(
                tmp_path / "plane",
                provider=provider.address,
                text=addresses,
                AUTO_LOAD="tiny/*",
            )
        )
        replicas = [
            await stack.enter_async_context(
                text_service(tmp_path / f"text{number}", port, plane.address)
            )
            for number, port in enumerate(ports)
        ]
        await _told(replicas[1])
        await _a_model_never_seen_before(plane, replicas, provider)
        await _models_that_do_not_fit_together(plane, replicas)
        await _errors(replicas, provider)
        await plane_stack.aclose()  # model_mgmt_svc is killed
        assert await replicas[0].embed(B)
        assert await replicas[0].refusal(A) == "UNAVAILABLE"


async def _told(replica: Replica) -> None:
    """Waits until the replicas know that they may ask for models."""

    async def asks() -> bool:
        return await replica.refusal(NONE) == "MODEL_NOT_FOUND"

    await until(asks)


async def _a_model_never_seen_before(
    plane: ModelMgmt, replicas: list[Replica], provider: Provider
) -> None:
    """Calls of both replicas wait for one load, with their deadlines."""
    calls = [asyncio.create_task(each.embed(A)) for each in replicas * 3]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replicas[0].embed(A, 0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    vectors = await asyncio.gather(*calls)
    assert all(vector == vectors[0] for vector in vectors)
    (loaded,) = await plane.models()
    assert (loaded.model_id, loaded.canonical_type) == (A, "feature-extraction")
    assert len(provider.asked_for(f"{A}/model.safetensors")) == 1


async def _models_that_do_not_fit_together(plane: ModelMgmt, replicas: list[Replica]) -> None:
    """The one is evicted for the other, and comes back."""
    first = await replicas[0].embed(A)
    for model_id in (B, A, B):
        vectors = await asyncio.gather(*(each.embed(model_id) for each in replicas * 2))
        assert all(vector == pytest.approx(first, abs=1e-6) for vector in vectors)
        assert [each.model_id for each in await plane.models()] == [model_id]
    # What a call has loaded is forgotten with its eviction.
    status = await plane.stub.ListModels(model_management_pb2.ListModelsRequest())
    assert [each.model_id for each in status.models if each.desired] == [B]
    # What LoadModel has loaded stays desired, and comes back as well.
    await plane.load(OTHER, "feature-extraction")
    await asyncio.gather(*(each.embed(B) for each in replicas))
    status = await plane.stub.ListModels(model_management_pb2.ListModelsRequest())
    assert {each.model_id for each in status.models if each.desired} == {B, OTHER}
    await replicas[1].embed(OTHER)
    await replicas[1].embed(B)


async def _errors(replicas: list[Replica], provider: Provider) -> None:
    """A model that may not be loaded, does not exist, is broken, or answers other calls."""
    assert await replicas[0].refusal("other/b") == "MODEL_NOT_LOADED"
    assert await replicas[0].refusal("../b") == "INVALID_MODEL_ID"
    broken = {path: data for path, data in provider.files.items() if path.startswith(f"{A}/")}
    provider.files |= {path.replace(A, "tiny/broken", 1): data for path, data in broken.items()}
    provider.files["tiny/broken/model.safetensors"] = b"nothing"
    reasons = await asyncio.gather(*(each.refusal("tiny/broken") for each in replicas * 3))
    assert set(reasons) == {"INVALID_MODEL"}
    fetched = len(provider.asked_for("tiny/broken/model.safetensors"))
    assert await replicas[0].refusal("tiny/broken") == "INVALID_MODEL"
    assert len(provider.asked_for("tiny/broken/model.safetensors")) == fetched
    text = transformers_pb2.TextRequest(model=A, prompt="a")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [each async for each in replicas[0].stub.GenerateText(text)]
    assert failure_of(caught.value).reason == "PIPELINE_MISMATCH"
