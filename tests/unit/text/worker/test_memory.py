"""A model that has no calls for a while gives memory back, once until it has had calls again."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import numpy as np
import pytest

from tests.support.waiting import until
from text_svc.processes import native_memory
from text_svc.worker import memory
from text_svc.worker.memory import give_back_when_idle


class Cache:
    """Counts."""

    cache_bytes = 0
    cache_limit_bytes = 0

    def __init__(self) -> None:
        self.given_back = 0

    async def give_back(self) -> None:
        self.given_back += 1
        if self.given_back == 1:
            raise RuntimeError("not now")


class Idle:
    """Tells what it is told, and counts how often it is asked."""

    def __init__(self) -> None:
        self.seconds, self.looks = 9.0, 0

    def __call__(self) -> float:
        self.looks += 1
        return self.seconds

    async def looked(self) -> None:
        """Waits for two more looks: one may be under way."""
        looks = self.looks
        await until(lambda: self.looks > looks + 1)


async def test_memory_is_given_back_once_in_each_time_without_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "LOOK_SECONDS", 0.001)
    cache, idle = Cache(), Idle()
    task = asyncio.create_task(give_back_when_idle(cache, idle, 5.0))
    await idle.looked()
    assert cache.given_back == 0  # nothing was called since the load
    for times in (1, 2, 3):  # the first one fails
        idle.seconds = 0.0
        await idle.looked()
        idle.seconds = 4.9
        await idle.looked()
        assert cache.given_back == times - 1
        idle.seconds = 5.0
        await until(lambda times=times: cache.given_back == times)
        await idle.looked()
        assert cache.given_back == times
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_pages_of_a_mapped_file_go_and_come_back(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    numbers = np.arange(1 << 18, dtype=np.int64)
    numbers.tofile(file)
    mapped = np.memmap(file, np.int64, "r")
    assert int(mapped.sum()) == int(numbers.sum())

    def resident() -> int:
        """Of the mapping; the system's cache of files does not count."""
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        found = next(line for line in lines if line.endswith(str(file)))
        assert found
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:"))

    assert resident() == file.stat().st_size
    native_memory.let_go_of_files(tmp_path)
    assert resident() == 0
    assert np.array_equal(mapped, numbers)
