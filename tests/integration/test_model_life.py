"""Options of life, aliases and the file of desired models, with the real services."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from tests.support.model_mgmt import failure_of
from tests.support.plane_and_text import START_SECONDS, PlaneAndText, plane_and_text
from tests.support.waiting import until

MODEL, CHAT = "tiny/one", "chat"
ENTRY = f"""
[[models]]
id = "{MODEL}"
type = "text-generation"
engine = "transformers"
cache_size_mb = 64
aliases = ["{CHAT}"]
"""

pytestmark = pytest.mark.timeout(900)


async def in_state(running: PlaneAndText, state: str) -> None:
    async def reached() -> bool:
        return (await running.states()).get(MODEL, ("",))[0] == state

    await until(reached, START_SECONDS)


async def sources(running: PlaneAndText) -> list[str]:
    (model,) = await running.listed()
    return list(model.sources)


async def test_a_model_of_the_file_answers_by_its_alias_and_leaves_when_idle(
    tmp_path: Path,
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(ENTRY)
    async with plane_and_text(
        tmp_path, [MODEL], memory_budget_mb=1300, MODELS_FILE=str(file)
    ) as running:
        await in_state(running, "READY")
        assert await sources(running) == ["file"]
        text = await running.answer(MODEL)
        assert text
        assert await running.answer(CHAT) == text

        file.write_text(ENTRY + "pin = 3\n")  # refused: nothing changes
        changed = await running.load(CHAT, keep_alive="0")
        assert "Changed: keep_alive=0" in changed.message
        assert await running.answer(CHAT) == text
        await in_state(running, "EVICTED")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.answer(CHAT)
        failure = failure_of(caught.value)
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "MODEL_NOT_LOADED",
        )
        assert failure.message == (
            f"model {MODEL} was evicted after its last call (option keep_alive); "
            "call LoadModel to load it again"
        )

        await running.load(CHAT, keep_alive="-1")
        assert await running.answer(CHAT) == text
        assert await sources(running) == ["api", "file"]
        (model,) = await running.listed()
        assert dict(model.options) == {"engine": "transformers", "cache_size_mb": "64"}
        file.write_text("")

        async def only_api() -> bool:
            return await sources(running) == ["api"]

        await until(only_api)
        assert await running.answer(CHAT) == text
        await running.plane.unload(CHAT)
        assert await running.listed() == []
