"""An event loop that stands still."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

from shared.rpc.loop_watch import LoopWatch

STALLS = """
import asyncio, threading
from shared.rpc.loop_watch import LoopWatch
from shared.telemetry import logs
async def main():
    with LoopWatch(0.6):
        threading.Event().wait(60)
logs.configure("test")
asyncio.run(main())
"""


async def test_a_loop_that_stands_still_is_noticed_once() -> None:
    stalled = threading.Event()
    with LoopWatch(0.3, stalled.set):
        stalled.wait(60)
    assert stalled.is_set()


async def test_a_loop_that_turns_is_left_alone() -> None:
    stalled = threading.Event()
    with LoopWatch(0.6, stalled.set):
        for _ in range(30):
            await asyncio.sleep(0.05)
    assert not stalled.is_set()


def test_the_process_ends_and_says_where_it_stood() -> None:
    done = subprocess.run(
        (sys.executable, "-c", STALLS), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "the event loop stands still" in done.stdout
    assert "in main" in done.stdout
