"""vision_svc whose face detector never ends: `python -m tests.integration.vision.hanging_service`.

No real graph hangs on frames that are checked.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

from vision_svc import tasks
from vision_svc.__main__ import run
from vision_svc.detector import Mode
from vision_svc.options import Options
from vision_svc.settings import VisionSettings


class HangingGraph:
    def detect(self, image: object, time_ms: int) -> None:
        threading.Event().wait()

    def close(self) -> None:
        threading.Event().wait()


def hang(path: Path, options: Options, mode: Mode) -> HangingGraph:
    return HangingGraph()


if __name__ == "__main__":
    hanging = replace(tasks.FACE_DETECTION, open=hang)  # type: ignore[arg-type]
    tasks.TASKS[hanging.name] = hanging  # type: ignore[index]
    asyncio.run(run(VisionSettings()))
