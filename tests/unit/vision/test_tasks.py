"""The table of tasks holds what the control plane resolves to vision_svc."""

from __future__ import annotations

from shared.pipelines import VISION_TASKS
from vision_svc.tasks import TASKS


def test_every_vision_pipeline_has_its_task() -> None:
    assert list(TASKS) == [pipeline.name for pipeline in VISION_TASKS]
