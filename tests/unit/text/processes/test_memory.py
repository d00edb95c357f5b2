"""The end of a process for lack of memory: which ends count as one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from text_svc.formats.load_errors import memory_error
from text_svc.models.budget import LIMIT_SHARE, MIB, THREAD_BYTES, process_limit
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
