"""Some faults of each family under steady calls: the short form of `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import report
from tests.chaos.chaos import run
from tests.chaos.schedule import SHORT, schedule
from tests.chaos.world import can_mount
from tests.support.stack import ROOT

SEED = 14
FAULT_SECONDS, STORM_SECONDS = 60.0, 6.0


@pytest.mark.timeout(1800)  # it takes two minutes, and more on a busy machine
def test_faults_are_survived(models: Path) -> None:
    if not can_mount():
        pytest.skip("this system lets nobody mount small disks for the test")
    verdict = run(
        schedule(SEED, SHORT),
        seed=SEED,
        seconds=FAULT_SECONDS,
        storm_seconds=STORM_SECONDS,
        log_file=ROOT / "out" / "chaos" / "test.jsonl",
    )
    print(report.text(verdict))
    assert verdict.failures == []
    assert verdict.rows
