"""Figures that models' processes write to files: each of its own model, and none of nonsense."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from text_svc.metrics import _of_engines

WRITE = """
import sys
from text_svc.worker.engines.metrics import EngineMetrics
for name, number in zip(sys.argv[1::2], sys.argv[2::2]):
    EngineMetrics(name).step(int(number))
"""


def model(folder: Path, name: str, *said: str) -> Any:
    """A model whose process says something: the size of a step, by the name of a model."""
    scratch = folder / name
    scratch.mkdir()
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(scratch)}
    subprocess.run((sys.executable, "-c", WRITE, *said), env=environment, check=True)
    process = SimpleNamespace(spec=SimpleNamespace(scratch=scratch))
    return SimpleNamespace(model_id=name, process=process)


def test_a_process_says_nothing_of_other_models_and_spoils_nothing(tmp_path: Path) -> None:
    models = [
        model(tmp_path, "one", "one", "3"),
        model(tmp_path, "two", "two", "5", "one", "200"),
        model(tmp_path, "three"),
        model(tmp_path, "four", "four", "7"),
    ]
    (tmp_path / "three" / "histogram_1.db").write_bytes(b"\xff" * 4096)
    (tmp_path / "four" / "gauge_livesum_1.db").touch()
    os.truncate(tmp_path / "four" / "gauge_livesum_1.db", 1 << 40)
    sums = {
        sample.labels["model"]: sample.value
        for metric in _of_engines(models)
        for sample in metric.samples
        if sample.name == "text_batch_answers_sum"
    }
    assert sums == {"one": 3, "two": 5, "four": 7}
