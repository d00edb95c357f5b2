"""A sample of the architectures, another one each day; `make test-architectures` runs them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.architectures import table
from tests.architectures.comparison import DIFFERENT, EQUAL
from tests.architectures.mappings import cases

ROOT = Path(__file__).resolve().parents[2]
# Chooses the sample; a failure of another day is repeated with its seed.
SEED = "ARCHITECTURES_SEED"


def test_every_row_of_the_table_is_a_case_and_every_case_a_row() -> None:
    assert table.read().keys() == set(cases())


def test_no_row_of_the_table_is_a_wrong_answer() -> None:
    assert [case.key for case, result in table.read().items() if DIFFERENT in result] == []


@pytest.mark.timeout(1200)  # a minute and a half on two free cores
def test_a_sample_is_what_the_table_says(tmp_path: Path) -> None:
    seed = os.environ.get(SEED) or datetime.now(UTC).strftime("%Y%m%d")
    print(f"{SEED}={seed}")
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "tests.architectures", "--seed", seed, "--results", results]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = dict(map(json.loads, results.read_text().splitlines()))
    promised = {case.key: result for case, result in table.read().items()}
    wrong = [
        f"{SEED}={seed} {key}: {result}; the table says {promised[key]}"
        for key, result in found.items()
        if DIFFERENT in result or (promised[key] == EQUAL and result != EQUAL)
    ]
    assert found
    if wrong:
        pytest.fail("\n".join(wrong))
