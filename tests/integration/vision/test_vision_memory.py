"""What vision_svc holds when its streams have ended."""

from __future__ import annotations

from tests.bench.vision_memory import MAX_GROWTH_BYTES, measure
from tests.integration.vision.conftest import StartVision


def test_streams_leave_no_memory_behind(start_vision: StartVision) -> None:
    """A small figure of `tests.bench.vision_memory`, from the first stream on."""
    vision = start_vision(admission_seconds="0")
    for task in ("StreamFaceMesh", "StreamFaceDetection"):
        held = measure(vision.channel, vision.process.pid, task, 30, first=1)
        assert held.streams == 30
        assert held.growth < MAX_GROWTH_BYTES, (task, held)
