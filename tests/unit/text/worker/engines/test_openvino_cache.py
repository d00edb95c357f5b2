"""A key-value cache that is too small for what it is given, against the engine's own admission."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shared.errors import InternalError
from text_svc.worker.engines.base import (
    Generation,
    Limits,
)
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.openvino import (
    BLOCK_TOKENS,
    OpenVinoEngine,
)
from text_svc.worker.engines.sampling import Sampling

BLOCKS = 4


async def ended(engine: OpenVinoEngine, prompt: int, tokens: int) -> str | None:
    """How an answer ended. Raises its error."""
    answer = Generation([5 + index % 300 for index in range(prompt)], Sampling(0, 1, tokens))
    engine.submit(answer)
    async with asyncio.timeout(60):
        while True:
            for step in await answer.take():
                if step.error:
                    raise step.error
                if step.finish_reason:
                    return step.finish_reason


@pytest.mark.parametrize(("prompt", "tokens"), [(200, 5), (100, 100)], ids=["prompt", "answer"])
async def test_what_the_pipeline_drops_in_silence_is_an_error(
    converted_llama: Path, prompt: int, tokens: int
) -> None:
    engine = OpenVinoEngine(
        converted_llama,
        limits=Limits(4096, 4, 4),
        end_tokens=(),
        cache_blocks=BLOCKS,
        precision="f32",
        threads=2,
        metrics=EngineMetrics("dropped"),
    )
    engine._free_blocks = 1000  # it would never let these in otherwise
    assert prompt + tokens > BLOCKS * BLOCK_TOKENS
    with pytest.raises(InternalError, match="refused"):
        await ended(engine, prompt, tokens)
    assert await ended(engine, 20, 5) == "length", "it serves on"
    await engine.close()


async def test_what_begins_as_others_are_cancelled_has_their_room(converted_llama: Path) -> None:
    engine = OpenVinoEngine(
        converted_llama,
        limits=Limits(128, 8, 8),
        end_tokens=(),
        cache_blocks=2 * BLOCKS,
        precision="f32",
        threads=1,
        metrics=EngineMetrics("cancelled"),
    )

    def begin(prompt: int) -> Generation:
        """Takes half of the cache."""
        ids = [5 + (index * 7 + prompt) % 300 for index in range(prompt)]
        generation = Generation(ids, Sampling(0, 1, 128 - prompt))
        engine.submit(generation)
        return generation

    running = [begin(4), begin(5)]
    for number in range(40):
        tokens = 0
        async with asyncio.timeout(60):
            while tokens < 1 + 13 * number % 100:
                for output in await running[1].take():
                    assert output.error is None
                    tokens += output.count
        for generation in running:
            engine.cancel(generation)
        running = [begin(6 + number % 20), begin(7 + number % 20)]
    await engine.close()
