"""Shared work: one run, cancelled when no caller is left, started anew after that."""

from __future__ import annotations

import asyncio

import pytest

from shared.errors import CallCancelledError
from shared.single_flight import SharedWork, SingleFlight


class Runs:
    """Makes work that waits for `go_on`, and counts."""

    def __init__(self) -> None:
        self.flights: SingleFlight[str, SharedWork[int]] = SingleFlight()
        self.go_on = asyncio.Event()
        self.started = 0
        self.cancelled = 0

    async def _run(self) -> int:
        self.started += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.started

    def start(self) -> SharedWork[int]:
        work: SharedWork[int] = SharedWork()
        work.task = asyncio.create_task(self._run())
        return work

    async def call(self) -> int:
        with self.flights.join("key", self.start) as work:
            return await work.finished()


async def test_callers_at_once_share_and_later_ones_do_not() -> None:
    runs = Runs()
    calls = [asyncio.create_task(runs.call()) for _ in range(10)]
    await asyncio.sleep(0)
    runs.go_on.set()
    assert await asyncio.gather(*calls) == [1] * 10
    assert await runs.call() == 2


async def test_nobody_joins_what_has_just_ended() -> None:
    runs = Runs()
    later: list[asyncio.Task[int]] = []

    async def run() -> int:
        # Its next step comes before the flight hears of the end of this one.
        later.append(asyncio.create_task(runs.call()))
        raise CallCancelledError("of those before")

    def start() -> SharedWork[int]:
        work: SharedWork[int] = SharedWork()
        work.task = asyncio.create_task(run())
        return work

    runs.go_on.set()
    with runs.flights.join("key", start) as work, pytest.raises(CallCancelledError):
        await work.finished()
    assert await later[0] == 1


async def test_it_goes_on_if_one_of_them_has_said_so() -> None:
    runs = Runs()

    async def call(*, goes_on: bool) -> int:
        with runs.flights.join("key", runs.start, goes_on=goes_on) as work:
            return await work.finished()

    calls = [asyncio.create_task(call(goes_on=each)) for each in (True, False)]
    await asyncio.sleep(0.01)
    for each in calls:
        each.cancel()
    await asyncio.wait(calls)
    assert (runs.cancelled, len(runs.flights)) == (0, 1)
    runs.go_on.set()
    assert await runs.call() == 1
    assert len(runs.flights) == 0


async def test_the_last_one_to_leave_ends_it() -> None:
    runs = Runs()
    calls = [asyncio.create_task(runs.call()) for _ in range(2)]
    await asyncio.sleep(0.01)
    calls[0].cancel()
    await asyncio.sleep(0.01)
    assert runs.cancelled == 0
    calls[1].cancel()
    await asyncio.wait(calls)
    assert (runs.started, runs.cancelled) == (1, 1)
    runs.go_on.set()
    assert await runs.call() == 2


async def test_one_who_asks_while_it_ends_begins_anew() -> None:
    runs = Runs()
    first = asyncio.create_task(runs.call())
    await asyncio.sleep(0.01)
    first.cancel()
    second = asyncio.create_task(runs.call())
    await asyncio.sleep(0.01)
    runs.go_on.set()
    assert await second == 2


async def test_work_that_is_stopped_tells_those_who_wait() -> None:
    runs = Runs()
    call = asyncio.create_task(runs.call())
    await asyncio.sleep(0.01)
    work = runs.flights.get("key")
    assert work
    runs.flights.stop("key", work)
    with pytest.raises(CallCancelledError):
        await call


async def test_closing_ends_everything() -> None:
    runs = Runs()
    call = asyncio.create_task(runs.call())
    await asyncio.sleep(0.01)
    await runs.flights.close()
    assert runs.cancelled == 1
    with pytest.raises(CallCancelledError):
        await call


async def test_closing_lets_work_that_ends_clean_up() -> None:
    cleaned = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()

    def start() -> SharedWork[None]:
        work: SharedWork[None] = SharedWork()
        work.task = asyncio.create_task(slow_to_end())
        return work

    flights: SingleFlight[str, SharedWork[None]] = SingleFlight()
    with flights.join("key", start):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)  # it is cancelled now, and cleans up
    await flights.close()
    assert cleaned.is_set()
