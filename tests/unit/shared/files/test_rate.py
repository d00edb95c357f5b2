"""The rate of fetches, on a clock of the test's own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shared.files.client import ModelFiles
from shared.files.rate import BURST_SECONDS, RateLimit
from shared.model_ids import ModelId
from tests.support.providers import CHUNK_BYTES, Provider
from tests.unit.shared.files.conftest import CONTENT, MODEL, NAME, QUICK

RATE = 1000


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def limited(clock: Clock) -> RateLimit:
    return RateLimit(RATE, clock=clock, sleep=clock.sleep)


async def test_bytes_take_as_long_as_the_rate_says() -> None:
    clock = Clock()
    rate = limited(clock)
    for _ in range(50):
        await rate.take(100)
    assert clock.now - 100 == pytest.approx(50 * 100 / RATE - BURST_SECONDS)


async def test_all_fetches_share_it() -> None:
    clock = Clock()
    rate = limited(clock)
    await asyncio.gather(*(rate.take(RATE) for _ in range(4)))
    assert clock.now - 100 >= 4 - BURST_SECONDS - 1e-9


async def test_a_pause_saves_no_more_than_a_burst() -> None:
    clock = Clock()
    rate = limited(clock)
    await rate.take(RATE)
    clock.now += 3600
    start = clock.now
    await rate.take(2 * RATE)
    assert clock.now - start == pytest.approx(2 - BURST_SECONDS)


async def test_a_fetch_keeps_to_it(source: Provider, tmp_path: Path) -> None:
    clock = Clock()
    async with ModelFiles(source.address, tmp_path, limits=QUICK) as files:
        files._rate = limited(clock)
        await files.fetch(ModelId(MODEL), NAME)
    # After the last chunk there is nothing to wait for.
    last = len(CONTENT) % CHUNK_BYTES
    assert clock.now - 100 == pytest.approx((len(CONTENT) - last) / RATE - BURST_SECONDS)


async def test_none_is_no_limit() -> None:
    clock = Clock()
    rate = RateLimit(0, clock=clock, sleep=clock.sleep)
    await rate.take(1 << 40)
    assert clock.now == 100
