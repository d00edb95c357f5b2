"""The end of a process for lack of memory: which ends count as one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from text_svc.formats.load_errors import memory_error
from text_svc.models.budget import LIMIT_SHARE, MIB, THREAD_BYTES, process_limit
from text_svc.processes import memory
from text_svc.processes.memory import MemoryWatch
from text_svc.processes.spawn import spawn
from text_svc.processes.specs import ChildSpec


def test_the_limit_is_what_is_reserved_and_more() -> None:
    assert (
        process_limit(400 * MIB, 100, 2) == 400 * MIB * LIMIT_SHARE + 100 * MIB + 2 * THREAD_BYTES
    )


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc")])
def test_a_call_that_is_out_of_memory_is_told_so(error: Exception) -> None:
    made = memory_error(error)
    assert made is not None
    assert made.reason == "OUT_OF_MEMORY"


def test_other_errors_are_left_alone() -> None:
    assert memory_error(ValueError("a number")) is None
    assert memory_error(KeyboardInterrupt()) is None


@pytest.mark.parametrize(
    ("doing", "expected"),
    [
        ("says bad_alloc", True),
        ("gets no memory", True),
        ("says nothing", False),
        ("dies", False),
    ],
)
async def test_the_end_of_a_process_for_lack_of_memory_is_told_from_others(
    doing: str, expected: bool
) -> None:
    scratch = Path(tempfile.mkdtemp())
    spec = ChildSpec(model_id=doing, scratch=scratch, log_level="INFO", log_style="text")
    child = await spawn("tests.support.reporting_child", spec, threads=1)
    try:
        assert await child.out_of_memory() is expected
    finally:
        await child.end()


@pytest.mark.parametrize("near", [True, False])
async def test_a_crash_near_the_limit_is_a_lack_of_memory(
    near: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryWatch, "near_limit", near)
    scratch = Path(tempfile.mkdtemp())
    spec = ChildSpec(
        model_id="crashes",
        scratch=scratch,
        memory_bytes=1024 * MIB,
        log_level="INFO",
        log_style="text",
    )
    child = await spawn("tests.support.reporting_child", spec, threads=1)
    try:
        assert await child.out_of_memory() is near
    finally:
        await child.end()


async def test_the_last_look_tells_how_near_the_limit_is(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, seen = iter([(79, 80), (60, 81), (0, 0), (101, 79)]), []

    def look(watch: MemoryWatch) -> tuple[int, int]:
        seen.append(watch.near_limit)
        return next(looks)

    monkeypatch.setattr(memory, "LOOK_SECONDS", 0)
    monkeypatch.setattr(MemoryWatch, "_look", look)
    watch = MemoryWatch(os.getpid(), 100)
    await watch.until_over()
    assert [*seen, watch.near_limit] == [False, False, True, True, True]


def test_a_look_at_this_process() -> None:
    held, counted = MemoryWatch(os.getpid(), 0)._look()
    assert held > 0
    assert counted > 0
