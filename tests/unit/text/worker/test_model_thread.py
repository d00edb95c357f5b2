"""The queue of a model's thread, and callers that go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import weakref
from typing import Any

import pytest

from shared.caller import CALLER_KEY, set_caller
from shared.errors import QueueFullError
from tests.support.waiting import until
from text_svc.worker.model_thread import ModelThread


async def test_a_caller_that_goes_stops_the_work() -> None:
    thread, seen = ModelThread(max_waiting=1), threading.Event()

    def work(cancelled: threading.Event) -> None:
        seen.set()
        assert cancelled.wait(60)

    running = asyncio.create_task(thread.run(work))
    await asyncio.to_thread(seen.wait)
    waiting = asyncio.create_task(thread.run(lambda _: "done"))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="1 wait"):
        await thread.run(lambda _: None)
    running.cancel()
    assert await waiting == "done"
    await until(lambda: not thread._places.taken)


async def test_a_caller_with_more_than_half_makes_room() -> None:
    thread, seen, hold = ModelThread(max_waiting=3), threading.Event(), threading.Event()

    def work(_: threading.Event) -> None:
        seen.set()
        assert hold.wait(60)

    async def run(name: str) -> None:
        set_caller({CALLER_KEY: name})
        await thread.run(work)

    calls = [asyncio.create_task(run("a")) for _ in range(4)]
    await asyncio.to_thread(seen.wait)
    with pytest.raises(QueueFullError, match="3 wait, which is the limit"):
        await run("a")
    other = asyncio.create_task(run("b"))
    with pytest.raises(QueueFullError, match="another caller has asked"):
        await calls[3]
    hold.set()
    await asyncio.gather(other, *calls[:3])
    await until(lambda: not thread._places.taken)


async def test_work_that_python_refuses_memory_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its own thread, before anything that takes memory could lose the end of the call."""
    ended: list[str] = []
    monkeypatch.setattr(os, "_exit", lambda code: ended.append(threading.current_thread().name))

    def work(_: threading.Event) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        await ModelThread(max_waiting=1).run(work)
    assert ended == ["infer_0"]


class Result:
    pass


@pytest.mark.parametrize("failing", [False, True], ids=["done", "failed"])
async def test_nothing_holds_a_call_that_has_ended(*, failing: bool) -> None:
    class Work:
        def __call__(self, _: threading.Event) -> Result:
            if failing:
                raise ValueError
            held.append(weakref.ref(result := Result()))
            return result

    thread, held = ModelThread(max_waiting=1), list[weakref.ref[Any]]()
    gc.disable()
    try:
        for _ in range(5):
            work = Work()
            held.append(weakref.ref(work))
            with contextlib.suppress(ValueError):
                await thread.run(work)
            del work
        await until(lambda: not any(each() for each in held), 10)
    finally:
        gc.enable()
