"""Callers of one model on OpenVINO: who begins, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from text_svc.worker.engines import openvino
from text_svc.worker.engines.base import Generation, Limits
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.openvino import OpenVinoEngine
from text_svc.worker.engines.sampling import Sampling

RUNNING, EXTRA = 4, 1


@pytest.fixture
async def engine(converted_llama: Path) -> AsyncIterator[OpenVinoEngine]:
    engine = OpenVinoEngine(
        converted_llama,
        limits=Limits(512, RUNNING, 100, extra=EXTRA, weights={"heavy": 3}),
        end_tokens=(),
        cache_blocks=160,
        precision="f32",
        threads=1,
        metrics=EngineMetrics("turns"),
    )
    yield engine
    await engine.close()


def submit(
    engine: OpenVinoEngine, caller: str, number: int, *, prompt: int = 4, priority: int = 0
) -> list[Generation]:
    """Generations that run until they are cancelled, as far as this test goes."""
    made = [
        Generation(
            [5 + (7 * each + token) % 300 for token in range(prompt)],
            Sampling(0, 1, 400),
            caller=caller,
            priority=priority,
        )
        for each in range(number)
    ]
    for generation in made:
        engine.submit(generation)
    return made


def begun(generations: Sequence[Generation]) -> int:
    return sum(bool(generation.started) for generation in generations)


async def first_token(generation: Generation) -> None:
    async with asyncio.timeout(60):
        while not any(output.count for output in await generation.take()):
            pass


async def test_a_caller_who_comes_anew_need_not_wait_for_the_end_of_another_s(
    engine: OpenVinoEngine,
) -> None:
    many = submit(engine, "many", 50)
    assert begun(many) == RUNNING
    one, late = submit(engine, "one", 2)
    assert (begun([one]), begun([late])) == (1, 0), "a caller with something running waits"
    await first_token(one)
    (other,) = submit(engine, "other", 1)
    assert not other.started, "there is no more extra room"
    engine.cancel(many[0])
    assert other.started
    engine.cancel(many[1])
    assert not late.started, "the extra room is not for whoever has something running"
    engine.cancel(many[2])
    assert late.started, "callers with as many running take turns"
    assert begun(many) == RUNNING, "three of which have ended"


async def test_callers_run_by_their_weights_and_their_own_priorities(
    engine: OpenVinoEngine,
) -> None:
    hold = submit(engine, "hold", RUNNING)
    (extra,) = submit(engine, "extra", 1)
    light, urgent = submit(engine, "light", 4), submit(engine, "light", 1, priority=3)
    heavy = submit(engine, "heavy", 4)
    assert begun(light) + begun(urgent) + begun(heavy) == 0
    for generation in (*hold, extra):
        engine.cancel(generation)
    assert (begun(light) + begun(urgent), begun(heavy)) == (1, 3)
    assert begun(urgent) == 1


async def test_prompts_that_wait_to_be_read_keep_nobody_who_comes_anew_waiting(
    engine: OpenVinoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "MAX_UNREAD_TOKENS", 100)
    many = submit(engine, "many", 4, prompt=60)
    assert begun(many) == 2, "more are unread than the next steps read"
    (one,) = submit(engine, "one", 1, prompt=60)
    assert one.started
    for generation in many:
        await first_token(generation)
    assert begun(many) == RUNNING
    assert engine._unread_tokens <= 60
    for generation in (*many, one):
        engine.cancel(generation)
    assert engine._unread_tokens == 0
    again = submit(engine, "many", 4, prompt=96)
    await first_token(again[0])
    for generation in again:
        engine.cancel(generation)
    again = submit(engine, "many", 4, prompt=96)
    assert begun(again) == RUNNING, "what is in the cache need not be read"


async def test_a_caller_with_many_running_leaves_room_in_the_cache(
    engine: OpenVinoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "MANY_RUNNING", 3)
    engine._free_blocks = 4 * 13  # for four
    many = submit(engine, "many", 6)
    assert begun(many) == 3
    (one,) = submit(engine, "one", 1)
    assert one.started
