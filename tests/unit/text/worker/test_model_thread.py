"""The queue of a model's thread, and callers that go."""

from __future__ import annotations

import asyncio
import threading

import pytest

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
    await until(lambda: not thread._active)
