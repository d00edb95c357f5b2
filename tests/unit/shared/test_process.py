"""What a process may use, and how it ended."""

from __future__ import annotations

import os
import sys

import pytest

from shared.process import usable_cores


def test_cores_are_those_of_the_affinity() -> None:
    if sys.platform == "linux":
        assert usable_cores() == len(os.sched_getaffinity(0))
    assert usable_cores() >= 1


def test_cores_where_the_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert usable_cores() == os.cpu_count()
