"""Steps of a model's work, as a heartbeat looks at them."""

from __future__ import annotations

import asyncio
import threading

from tests.support.waiting import until
from text_svc.worker.model_thread import ModelThread
from text_svc.worker.steps import Steps, look_at_all


def test_work_without_steps_is_stuck_from_the_second_look_on() -> None:
    steps = Steps()
    assert [steps.look() for _ in range(3)] == [0, 0, 0]
    steps.expect(1)
    assert [steps.look() for _ in range(3)] == [0, 1, 2]
    steps.done()
    assert [steps.look() for _ in range(2)] == [0, 1]
    steps.expect(2)  # more work is no step
    assert steps.look() == 2
    steps.expect(0)
    assert steps.look() == 0


def test_the_worst_of_all_counts() -> None:
    busy, stuck = Steps(), Steps()
    busy.expect(1)
    stuck.expect(1)
    look_at_all()
    for looks in (1, 2):
        busy.done()
        assert look_at_all() == looks


async def test_a_thread_takes_a_step_whenever_it_looks_for_its_caller() -> None:
    thread, looked, go_on = ModelThread(1), threading.Event(), threading.Event()

    def work(cancelled: threading.Event) -> None:
        go_on.wait()
        assert not cancelled.is_set()
        looked.set()
        go_on.clear()
        go_on.wait()

    running = asyncio.ensure_future(thread.run(work))
    await asyncio.sleep(0)
    assert [thread._steps.look() for _ in range(3)] == [0, 1, 2]
    go_on.set()
    await asyncio.to_thread(looked.wait)
    assert thread._steps.look() == 0
    running.cancel()  # who hangs is noticed though nobody waits for it
    assert thread._steps.look() == 1
    go_on.set()
    await until(lambda: not thread._steps._pieces)
    assert thread._steps.look() == 0
