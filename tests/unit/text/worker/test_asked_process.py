"""The ends of a process that is asked; the rest is tested by what it does for others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.caller import CALLER_KEY, set_caller
from shared.errors import InternalError
from shared.turns import TurnLock
from text_svc.worker.asked_process import AskedProcess
from text_svc.worker.generation.chat_template import PROCESS


async def test_one_that_is_closed_while_it_starts_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = AskedProcess(PROCESS)
    start, started = asyncio.create_subprocess_exec, []

    async def start_and_close(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        started.append(await start(*command, **options))
        await asked.close()
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_and_close)
    with pytest.raises(InternalError, match="being unloaded"):
        await asked.start({}, 60)
    assert started[0].returncode is not None
    assert not asked.running


async def test_work_goes_on_without_its_caller_and_the_next_waits_for_it() -> None:
    asked, go_on, done = AskedProcess(PROCESS), asyncio.Event(), []

    async def work(name: str) -> str:
        await go_on.wait()
        done.append(name)
        return name

    leaving = asyncio.create_task(asked.in_turn(lambda: work("first")))
    waiting = asyncio.create_task(asked.in_turn(lambda: work("never")))
    staying = asyncio.create_task(asked.in_turn(lambda: work("second")))
    await asyncio.sleep(0)
    leaving.cancel()
    waiting.cancel()
    go_on.set()
    assert await staying == "second"
    assert done == ["first", "second"]


async def test_callers_take_turns() -> None:
    asked, done = AskedProcess(PROCESS), list[str]()

    async def ask(name: str) -> None:
        async def work() -> None:
            await asyncio.sleep(0)
            done.append(name)

        set_caller({CALLER_KEY: name})
        await asked.in_turn(work)

    calls = [asyncio.create_task(ask(name)) for name in ["a"] * 20 + ["b"]]
    await asyncio.gather(*calls)
    assert done == ["a", "b", *["a"] * 19]


async def test_a_turn_that_comes_to_a_call_that_goes_is_given_on() -> None:
    lock = TurnLock()
    release = await lock.acquire("a")
    going = [asyncio.create_task(lock.acquire("a")) for _ in range(3)]
    staying = asyncio.create_task(lock.acquire("a"))
    await asyncio.sleep(0)
    going[0].cancel()
    release()  # comes to the first, which is cancelled
    going[1].cancel()
    await asyncio.sleep(0)
    going[2].cancel()  # its turn has come
    (await asyncio.wait_for(staying, 10))()
    assert all(each.cancelled() for each in going)
    (await asyncio.wait_for(lock.acquire("b"), 10))()
