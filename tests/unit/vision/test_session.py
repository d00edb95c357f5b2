"""A stream's frames: how many are under way, which are dropped, and what an end frees."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ml import mediapipe_pb2 as pb
from shared.errors import FrameSizeError
from shared.frames.types import EncodedFrame
from vision_svc import tasks
from vision_svc.detector import Mode
from vision_svc.engine import Engine
from vision_svc.options import Options
from vision_svc.session import Metadata
from vision_svc.settings import VisionSettings
from vision_svc.tasks import Asset, VisionTask

LONG = 10.0


class GatedTask:
    """Stands for a model that takes as long as the test wants: each frame needs a permit."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.closed = threading.Event()

    def detect(self, image: object, time_ms: int) -> pb.FaceDetectionResponse:
        assert self.permits.acquire(timeout=LONG)
        return pb.FaceDetectionResponse()

    def close(self) -> None:
        self.closed.set()


class Sender:
    """Frames of 2 x 2 pixels, with a record of how many were taken."""

    def __init__(self, count: int, bad: int = -1) -> None:
        self.taken = 0
        self._count = count
        self._bad = bad

    async def frames(self) -> AsyncIterator[tuple[EncodedFrame, Metadata]]:
        for number in range(self._count):
            data = b"\0" * (1 if number == self._bad else 12)
            yield EncodedFrame(data, "rgb", 2, 2, number=number, position=number + 1), {}
            self.taken += 1


@pytest.fixture
def gated() -> GatedTask:
    return GatedTask()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gated: GatedTask) -> Iterator[Engine]:
    def open_gated(path: Path, options: Options, mode: Mode) -> GatedTask:
        return gated

    (tmp_path / "model").write_bytes(b"1")
    task = VisionTask("gated", open_gated, {"": Asset("model", 1)}, ())
    monkeypatch.setitem(tasks.TASKS, "gated", task)  # type: ignore[arg-type]
    engine = Engine(VisionSettings(assets_dir=tmp_path, workers=2), lambda: None)
    yield engine
    gated.permits.release(1000)
    engine.close()


async def settle() -> None:
    await asyncio.sleep(0.1)


async def numbers(answers: AsyncIterator[object]) -> list[int]:
    return [answer.frame_number async for answer in answers]  # type: ignore[attr-defined]


async def test_every_frame_is_answered_in_order(engine: Engine, gated: GatedTask) -> None:
    gated.permits.release(200)
    assert await numbers(engine.stream("gated", Sender(200).frames(), {})) == list(range(200))


async def test_four_frames_are_under_way_and_no_more(engine: Engine, gated: GatedTask) -> None:
    sender = Sender(100)
    answers = engine.stream("gated", sender.frames(), {})
    first = asyncio.ensure_future(anext(answers))
    await settle()
    assert sender.taken == 4  # a fifth has been read and waits for room
    gated.permits.release(100)
    await first
    await settle()
    assert sender.taken == 5  # answers that are not taken hold it up as well
    assert await numbers(answers) == list(range(1, 100))


async def test_the_newest_frame_replaces_those_that_wait(engine: Engine, gated: GatedTask) -> None:
    answers = engine.stream("gated", Sender(50).frames(), {"frame-policy": "latest"})
    first = asyncio.ensure_future(anext(answers))
    await settle()
    gated.permits.release(50)
    assert (await first).frame_number == 0
    last = await anext(answers)
    assert (last.frame_number, last.frames_dropped) == (49, 48)
    with pytest.raises(StopAsyncIteration):
        await anext(answers)


async def test_an_error_comes_after_the_answers_before_it(engine: Engine, gated: GatedTask) -> None:
    gated.permits.release(50)
    answers = engine.stream("gated", Sender(10, bad=3).frames(), {})
    got = []
    with pytest.raises(FrameSizeError, match="frame 4 of the stream"):
        async for answer in answers:
            got.append(answer.frame_number)
            await settle()
    assert got == [0, 1, 2]


async def test_a_reader_that_is_cancelled_frees_the_model(engine: Engine, gated: GatedTask) -> None:
    sender = Sender(10**9)
    reader = asyncio.create_task(numbers(engine.stream("gated", sender.frames(), {})))
    await settle()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    taken = sender.taken
    gated.permits.release()  # the frame that runs ends; those that waited do not begin
    assert await asyncio.to_thread(gated.closed.wait, LONG)
    await settle()
    assert sender.taken == taken
    assert gated.permits.acquire(blocking=False) is False
