"""What is done about graphs that fail, and about too many pictures."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from ml import mediapipe_pb2 as pb
from shared.errors import InternalError, MissingFieldError, QueueFullError
from tests.support.waiting import until
from vision_svc import tasks
from vision_svc.detector import Asset, Mode, VisionTask
from vision_svc.frames.types import EncodedFrame
from vision_svc.options import Options
from vision_svc.runtime import VisionRuntime
from vision_svc.settings import VisionSettings
from vision_svc.task_runner import TaskRunner

PICTURE = EncodedFrame(b"\0" * 12, "rgb", 2, 2, data_field="image_data")


class FailingGraph:
    """A MediaPipe graph that fails, which no real one does on frames that were checked."""

    def detect(self, image: object, time_ms: int) -> None:
        raise RuntimeError("calculator failed")

    def close(self) -> None:
        pass


def fail(path: Path, options: Options, mode: Mode) -> FailingGraph:
    return FailingGraph()


async def test_too_many_failures_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").write_bytes(b"1")
    task = VisionTask("failing", fail, {"": Asset("model", 1)}, (), pb.FaceDetectionResponse)
    monkeypatch.setitem(tasks.TASKS, "failing", task)  # type: ignore[arg-type]
    asked: list[bool] = []
    settings = VisionSettings(assets_dir=tmp_path, max_failed_graphs=3)
    runtime = VisionRuntime(settings, lambda: asked.append(True))
    runner = TaskRunner(runtime, settings.max_waiting_calls)
    try:
        for number in range(1, 6):
            with pytest.raises(InternalError, match="failing failed on a frame"):
                await runner.detect("failing", PICTURE, {})
            assert len(asked) == (number >= 3)
    finally:
        await asyncio.to_thread(runtime.close)


async def test_pictures_that_wait_are_limited(tmp_path: Path) -> None:
    settings = VisionSettings(assets_dir=tmp_path, workers=1, max_waiting_calls=2)
    runtime = VisionRuntime(settings, lambda: None)
    runner = TaskRunner(runtime, settings.max_waiting_calls)
    try:
        calls = [runner.detect("face-detection", PICTURE, {}) for _ in range(8)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [each for each in results if isinstance(each, QueueFullError)]
        assert len(refused) == 5
        assert "3 pictures" in refused[0].message
    finally:
        await asyncio.to_thread(runtime.close)


async def test_nothing_holds_a_picture_that_was_refused(tmp_path: Path) -> None:
    settings = VisionSettings(assets_dir=tmp_path, workers=1)
    runtime = VisionRuntime(settings, lambda: None)
    runner = TaskRunner(runtime, settings.max_waiting_calls)
    gc.disable()
    try:
        picture = replace(PICTURE, data=b"")
        held = weakref.ref(picture)
        with contextlib.suppress(MissingFieldError):
            await runner.detect("face-detection", picture, {})
        del picture
        await until(lambda: held() is None, 10)
    finally:
        gc.enable()
        await asyncio.to_thread(runtime.close)
