"""Three models that fit into memory two at a time: the one that is not used makes room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from ml import transformers_pb2, transformers_pb2_grpc
from tests.support import tiny_text
from tests.support.model_mgmt import ModelMgmt, failure_of, model_mgmt
from tests.support.processes import free_port, process, ready_channel
from tests.support.providers import Provider, folder_files
from tests.support.waiting import until

ONE, TWO, THREE = MODELS = ("tiny/one", "tiny/two", "tiny/three")
# A model reserves its cache and 512 MiB for its process, beside weights of less than one.
CACHE_MB, BUDGET_MB = 64, 1300
OPTIONS = {"engine": "transformers", "cache_size_mb": str(CACHE_MB)}
LONG = 3000
START_SECONDS = 300.0

pytestmark = pytest.mark.timeout(900)


@dataclass
class Services:
    """The control plane and text_svc."""

    plane: ModelMgmt
    text: transformers_pb2_grpc.TransformersServiceStub

    async def load(self, model_id: str, **options: str) -> pb.LoadModelResponse:
        response: pb.LoadModelResponse = await self.plane.load(model_id, options=OPTIONS | options)
        return response

    async def states(self) -> dict[str, tuple[str, str]]:
        """The state of each model and its reason."""
        listed = await self.plane.stub.ListModels(pb.ListModelsRequest())
        return {
            model.model_id: (
                pb.ModelState.Name(model.state).removeprefix("MODEL_STATE_"),
                model.reason,
            )
            for model in listed.models
        }

    async def answer(self, model_id: str, length: int = 8) -> str:
        request = transformers_pb2.TextRequest(
            model=model_id, prompt="the sea", max_length=length, temperature=0
        )
        return "".join([each.text async for each in self.text.GenerateText(request)])


@contextlib.asynccontextmanager
async def services(folder: Path) -> AsyncIterator[Services]:
    files: dict[str, bytes] = {}
    made = tiny_text.save_llama(folder / "llama")
    for model_id in MODELS:
        files |= folder_files(made, model_id)
    port = free_port()
    address = f"127.0.0.1:{port}"
    async with (
        Provider(files).running() as provider,
        model_mgmt(folder / "plane", provider=provider.address, text=address) as plane,
    ):
        settings = {
            "PORT": str(port),
            "METRICS_PORT": "0",
            "FILE_PROVIDER_ADDR": plane.address,
            "CACHE_DIR": str(folder / "cache"),
            "DRAIN_SECONDS": "0",
            "MEMORY_BUDGET_MB": str(BUDGET_MB),
        }
        env = {f"TEXT_{name}": value for name, value in settings.items()}
        with process("-m", "text_svc", env=env):
            async with ready_channel(address, START_SECONDS) as channel:
                yield Services(plane, transformers_pb2_grpc.TransformersServiceStub(channel))


async def failure(call: object) -> tuple[grpc.StatusCode, str, str]:
    """The status, the reason and the message of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    failed = failure_of(caught.value)
    return failed.code, failed.reason, failed.message


async def test_three_models_take_turns_in_the_memory_of_two(tmp_path: Path) -> None:
    async with services(tmp_path) as running:
        # Without waiting for the service: the first load does.
        await until_loaded(running, ONE)
        await running.load(TWO)
        text = await running.answer(ONE)
        assert text
        await running.answer(TWO)

        loaded = await running.load(THREE)
        assert f"{ONE} was evicted to make room for it" in loaded.message
        reason = f"it was evicted to make room for {THREE}"
        assert await running.states() == {
            ONE: ("EVICTED", reason),
            TWO: ("READY", ""),
            THREE: ("READY", ""),
        }
        assert [model.model_id for model in await running.plane.models()] == [THREE, TWO]
        code, word, message = await failure(running.answer(ONE))
        assert (code, word) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_LOADED")
        assert message == (
            f"model {ONE} was evicted to make room for {THREE}; call LoadModel to load it again"
        )

        # One answers a call, the other is pinned: nothing may go, and the call is not disturbed.
        await running.load(THREE, pin="true")
        request = transformers_pb2.TextRequest(
            model=TWO, prompt="the sea", max_length=LONG, temperature=0
        )
        call = aiter(running.text.GenerateText(request))
        first = await anext(call)
        code, word, message = await failure(running.load(ONE))
        assert (code, word) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
        assert f"{THREE} holds" in message
        assert "is pinned" in message
        assert f"{TWO} holds" in message
        assert "answers 1 call" in message
        assert (await running.states())[ONE][0] == "FAILED"  # for a minute, and it stays desired
        rest = [response async for response in call]
        assert first.text or rest

        # It is loaded again when somebody asks, and answers as before.
        await running.load(ONE)
        assert await running.answer(ONE) == text
        assert (await running.states())[TWO][0] == "EVICTED"
        await running.load(THREE, pin="false")

        # Callers who load what they need, all at once: each answer is right, or says what to do.
        async def caller(number: int) -> list[str]:
            seen = []
            for turn in range(2):
                model_id = MODELS[(number + turn) % 3]
                try:
                    await running.load(model_id)
                    assert await running.answer(model_id) == text
                except grpc.aio.AioRpcError as error:
                    seen.append(failure_of(error).reason)
            return seen

        outcomes = await asyncio.gather(*(caller(number) for number in range(3)))
        allowed = {"OUT_OF_MEMORY", "MODEL_NOT_LOADED", "WORKER_UNAVAILABLE"}
        assert {reason for seen in outcomes for reason in seen} <= allowed

        async def settled() -> bool:
            states = [state for state, _ in (await running.states()).values()]
            return set(states) <= {"READY", "EVICTED"} and states.count("READY") == 2

        await until(settled)


async def until_loaded(running: Services, model_id: str) -> None:
    async def loaded() -> bool:
        try:
            await running.load(model_id)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017
            return False
        return True

    await until(loaded, START_SECONDS)
