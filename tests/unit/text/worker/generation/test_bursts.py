"""Prompts of a burst of callers begin together, and nobody waits for long."""

from __future__ import annotations

import asyncio

import pytest

from text_svc.worker.generation import bursts as module
from text_svc.worker.generation.bursts import Bursts


class Calls:
    """Calls whose prompts are ready when a test says so, and which then run for ever."""

    def __init__(self) -> None:
        self.bursts = Bursts()
        self.began: list[str] = []

    async def call(self, name: str, ready: asyncio.Event) -> None:
        with self.bursts.preparing():
            await ready.wait()
        await self.bursts.together()
        with self.bursts.running():
            self.began.append(name)
            await asyncio.Event().wait()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_first_of_a_burst_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_SECONDS", 600)
    calls, ready = Calls(), [asyncio.Event() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(calls.call(str(number), each)) for number, each in enumerate(ready)
        ]
        await turns()
        ready[0].set()
        ready[1].set()
        await turns()
        assert calls.began == []
        ready[2].set()
        await turns()
        assert sorted(calls.began) == ["0", "1", "2"]
        for task in tasks:
            task.cancel()


async def test_a_lone_caller_begins_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_SECONDS", 600)
    calls, ready = Calls(), asyncio.Event()
    task = asyncio.create_task(calls.call("alone", ready))
    ready.set()
    await turns()
    assert calls.began == ["alone"]
    task.cancel()


async def test_nobody_waits_while_the_engine_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_SECONDS", 600)
    calls, ready = Calls(), asyncio.Event()
    ready.set()
    first = asyncio.create_task(calls.call("first", ready))
    await turns()
    slow = asyncio.create_task(calls.call("slow", asyncio.Event()))
    second = asyncio.create_task(calls.call("second", ready))
    await turns()
    assert calls.began == ["first", "second"]
    for task in (first, slow, second):
        task.cancel()


async def test_a_prompt_that_takes_long_holds_nobody_for_long() -> None:
    calls, ready = Calls(), asyncio.Event()
    ready.set()
    slow = asyncio.create_task(calls.call("slow", asyncio.Event()))
    await turns()
    call = asyncio.create_task(calls.call("quick", ready))
    async with asyncio.timeout(60):
        while not calls.began:
            await asyncio.sleep(0.01)
    assert calls.began == ["quick"]
    for task in (slow, call):
        task.cancel()


async def test_one_that_gives_up_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_SECONDS", 600)
    calls, ready = Calls(), asyncio.Event()
    gone = asyncio.create_task(calls.call("gone", asyncio.Event()))
    ready.set()
    waiting = asyncio.create_task(calls.call("waiting", ready))
    await turns()
    assert calls.began == []
    gone.cancel()
    await turns()
    assert calls.began == ["waiting"]
    waiting.cancel()
