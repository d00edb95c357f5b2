"""What a process may use, and how it ended."""

from __future__ import annotations

import os
import sys

import pytest

from shared import process
from shared.process import OUT_OF_MEMORY_EXIT, exit_if_out_of_memory, usable_cores


def test_cores_are_those_of_the_affinity() -> None:
    if sys.platform == "linux":
        assert usable_cores() == len(os.sched_getaffinity(0))
    assert usable_cores() >= 1


def test_cores_where_the_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert usable_cores() == os.cpu_count()


def test_only_pythons_own_lack_of_memory_ends_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class ArrayMemoryError(MemoryError):
        """As numpy's."""

    codes: list[int] = []
    monkeypatch.setattr(process.os, "_exit", codes.append)
    for error in (ArrayMemoryError(), RuntimeError("std::bad_alloc")):
        exit_if_out_of_memory(error)
    assert codes == []
    exit_if_out_of_memory(MemoryError())
    assert codes == [OUT_OF_MEMORY_EXIT]
