"""A replica takes calls once it is admitted, or if there is no control plane to admit it."""

from __future__ import annotations

import asyncio
import time

from shared.rpc.admission import Admission


async def test_it_waits_to_be_let_in() -> None:
    admission = Admission(patience_seconds=600)
    waiting = asyncio.create_task(admission.wait())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert not admission.admitted
    admission.admit()
    await asyncio.wait_for(waiting, 60)
    assert admission.admitted


async def test_it_was_let_in_before_it_waits() -> None:
    admission = Admission(patience_seconds=600)
    admission.admit()
    await asyncio.wait_for(admission.wait(), 60)


async def test_a_cancellation_with_the_admission_is_not_lost() -> None:
    admission = Admission(patience_seconds=600)
    waiting = asyncio.create_task(admission.wait())
    await asyncio.sleep(0)
    admission.admit()
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()


async def test_there_is_no_control_plane() -> None:
    admission = Admission(patience_seconds=0.05)
    await asyncio.wait_for(admission.wait(), 60)
    assert admission.admitted


async def test_a_control_plane_that_is_there_is_waited_for() -> None:
    admission = Admission(patience_seconds=0.3)
    waiting = asyncio.create_task(admission.wait())
    await asyncio.sleep(0)
    for _ in range(50):
        heard_at = time.monotonic()
        admission.heartbeat()
        await asyncio.sleep(0.02)
        if waiting.done():  # this task itself was silent for too long: the machine is busy
            break
    await waiting
    assert time.monotonic() - heard_at >= 0.3
