"""Three models that fit into memory two at a time: the one that is not used makes room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from ml import transformers_pb2
from tests.support.model_mgmt import failure_of
from tests.support.plane_and_text import PlaneAndText, plane_and_text
from tests.support.waiting import until

ONE, TWO, THREE = MODELS = ("tiny/one", "tiny/two", "tiny/three")
# A model reserves its cache and 512 MiB for its process, beside weights of less than one.
CACHE_MB, BUDGET_MB = 64, 1300
OPTIONS = {"engine": "transformers", "cache_size_mb": str(CACHE_MB)}
LONG = 3000

pytestmark = pytest.mark.timeout(900)


async def load(running: PlaneAndText, model_id: str, **options: str) -> pb.LoadModelResponse:
    return await running.load(model_id, **OPTIONS, **options)


async def failure(call: object) -> tuple[grpc.StatusCode, str, str]:
    """The status, the reason and the message of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    failed = failure_of(caught.value)
    return failed.code, failed.reason, failed.message


async def test_three_models_take_turns_in_the_memory_of_two(tmp_path: Path) -> None:
    async with plane_and_text(tmp_path, MODELS, memory_budget_mb=BUDGET_MB) as running:
        # Without waiting for the service: the first load does.
        await running.load_when_up(ONE, **OPTIONS)
        await load(running, TWO)
        text = await running.answer(ONE)
        assert text
        await running.answer(TWO)

        loaded = await load(running, THREE)
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
        await load(running, THREE, pin="true")
        request = transformers_pb2.TextRequest(
            model=TWO, prompt="the sea", max_length=LONG, temperature=0
        )
        call = aiter(running.text.GenerateText(request))
        first = await anext(call)
        code, word, message = await failure(load(running, ONE))
        assert (code, word) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
        assert f"{THREE} holds" in message
        assert "is pinned" in message
        assert f"{TWO} holds" in message
        assert "answers 1 call" in message
        assert (await running.states())[ONE][0] == "FAILED"  # for a minute, and it stays desired
        rest = [response async for response in call]
        assert first.text or rest

        # It is loaded again when somebody asks, and answers as before.
        await load(running, ONE)
        assert await running.answer(ONE) == text
        assert (await running.states())[TWO][0] == "EVICTED"
        await load(running, THREE, pin="false")

        # Callers who load what they need, all at once: each answer is right, or says what to do.
        async def caller(number: int) -> list[str]:
            seen = []
            for turn in range(2):
                model_id = MODELS[(number + turn) % 3]
                try:
                    await load(running, model_id)
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
