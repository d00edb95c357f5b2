"""Which processes are said to hang: real ones, which are stopped, compute or wait."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import cast

import pytest

from text_svc.link.client import Link
from text_svc.processes.heartbeat import PINGS, until_hung

HANG_SECONDS = 0.6
# What a process does that neither answers nor finishes a step.
WAITS, COMPUTES = "import time; time.sleep(600)", "while True: pass"
# What it does as long as nothing is wrong.
LOOKS = 3 * PINGS


class Pulse:
    """A link whose process answers as told, and counts the pings."""

    def __init__(self, *, answers: bool, stuck: bool) -> None:
        self.unanswered = self.stuck = self.pings = 0
        self.answers, self.is_stuck = answers, stuck

    def ping(self) -> None:
        self.pings += 1
        self.unanswered = 0 if self.answers else self.unanswered + 1
        self.stuck = self.stuck + 1 if self.is_stuck else 0


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[int]:
    with subprocess.Popen((sys.executable, "-c", request.param)) as child:
        yield child.pid
        child.kill()


async def watched(pulse: Pulse, pid: int, max_step_seconds: float = 600) -> str | None:
    """What is said of the process; None after LOOKS in which nothing was."""
    watch = asyncio.ensure_future(
        until_hung(cast("Link", pulse), pid, HANG_SECONDS, max_step_seconds)
    )
    while not watch.done() and pulse.pings < LOOKS:
        await asyncio.sleep(0.01)
    if watch.done():
        return watch.result()
    watch.cancel()
    return None


@pytest.mark.parametrize("process", [WAITS], indirect=True)
@pytest.mark.parametrize("stopped", [True, False])
async def test_a_process_that_neither_answers_nor_computes(process: int, stopped: bool) -> None:
    if stopped:
        os.kill(process, signal.SIGSTOP)
    said = await watched(Pulse(answers=False, stuck=False), process)
    assert said == "it did not answer for 0.6 s and did not compute either"


@pytest.mark.parametrize("process", [WAITS], indirect=True)
async def test_work_without_steps_and_without_computing(process: int) -> None:
    said = await watched(Pulse(answers=True, stuck=True), process)
    assert said == "it had work and finished no step for 0.6 s and did not compute either"


@pytest.mark.parametrize("process", [COMPUTES], indirect=True)
@pytest.mark.parametrize("answers", [True, False])
async def test_a_long_step_is_left_alone(process: int, answers: bool) -> None:
    assert await watched(Pulse(answers=answers, stuck=True), process) is None


@pytest.fixture
def no_core(process: int) -> Iterator[None]:
    """Takes nearly all of its core from the process."""
    core = {min(os.sched_getaffinity(0))}
    with subprocess.Popen((sys.executable, "-c", COMPUTES)) as other:
        for each in (process, other.pid):
            os.sched_setaffinity(each, core)
        os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0))
        yield
        other.kill()


@pytest.mark.parametrize("process", [COMPUTES], indirect=True)
async def test_a_process_that_gets_no_core_is_left_alone(process: int, no_core: None) -> None:
    assert await watched(Pulse(answers=True, stuck=True), process) is None


@pytest.mark.parametrize("process", [COMPUTES], indirect=True)
async def test_an_endless_step_is_not(process: int) -> None:
    said = await watched(Pulse(answers=True, stuck=True), process, max_step_seconds=1.15)
    assert said == "it had work and finished no step for 1.2 s"


@pytest.mark.parametrize("process", [WAITS], indirect=True)
async def test_an_idle_process_is_left_alone(process: int) -> None:
    assert await watched(Pulse(answers=True, stuck=False), process) is None
