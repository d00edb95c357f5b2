"""vision_svc whose face detector fails: `python -m tests.integration.vision.failing_service`.

No real graph fails on frames that are checked.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vision_svc import tasks
from vision_svc.__main__ import run
from vision_svc.detector import Mode
from vision_svc.options import Options
from vision_svc.settings import VisionSettings


class FailingGraph:
    def detect(self, image: object, time_ms: int) -> None:
        raise RuntimeError("calculator failed")

    def close(self) -> None:
        pass


def fail(path: Path, options: Options, mode: Mode) -> FailingGraph:
    return FailingGraph()


if __name__ == "__main__":
    import asyncio

    failing = replace(tasks.FACE_DETECTION, open=fail)  # type: ignore[arg-type]
    tasks.TASKS[failing.name] = failing  # type: ignore[index]
    asyncio.run(run(VisionSettings()))
