"""A stream's frames: how many are in flight, which are dropped, and what an end frees."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from shared.caller import CALLER_KEY, set_caller
from shared.errors import (
    FrameSizeError,
    OutOfRangeError,
    QueueFullError,
    UndecodableImageError,
    UnknownOptionError,
)
from shared.places import Places
from tests.support.vision_frames import encode_video
from vision_svc import tasks
from vision_svc.detector import Answer, Asset, Mode, StreamTask, VisionTask, skipped
from vision_svc.frames.types import DecodedFrame, EncodedFrame, SkippedFrame
from vision_svc.options import Options
from vision_svc.runtime import VisionRuntime
from vision_svc.settings import VisionSettings
from vision_svc.streams.session import Incoming
from vision_svc.task_runner import TaskRunner

LONG = 60.0
LATEST = {"frame-policy": "latest"}


class GatedTask:
    """A model that takes as long as the test wants: each frame needs a permit."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.permits = threading.Semaphore(0)
        self.closed = threading.Event()

    async def wait_begun(self) -> None:
        """Until one more frame has begun."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=LONG)

    def detect(self, image: object, time_ms: int) -> pb.FaceDetectionResponse:
        self.begun.release()
        assert self.permits.acquire(timeout=LONG)
        return pb.FaceDetectionResponse()

    def close(self) -> None:
        self.closed.set()


class Sender:
    """Frames of 2 x 2 pixels, with a record of how many were taken."""

    def __init__(self, count: int, bad: int = -1) -> None:
        self.taken = 0
        self.all_taken = asyncio.Event()
        self._count = count
        self._bad = bad

    async def frames(self) -> Incoming:
        for number in range(self._count):
            data = b"\0" * (1 if number == self._bad else 12)
            yield EncodedFrame(data, "rgb", 2, 2, number=number, position=number + 1), {}
            self.taken += 1
        self.all_taken.set()


@pytest.fixture
def gated() -> GatedTask:
    return GatedTask()


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[VisionRuntime]:
    (tmp_path / "model").write_bytes(b"1")
    runtime = VisionRuntime(VisionSettings(assets_dir=tmp_path, workers=1), lambda: None)
    yield runtime
    runtime.close()


@pytest.fixture
def runner(
    runtime: VisionRuntime, monkeypatch: pytest.MonkeyPatch, gated: GatedTask
) -> Iterator[TaskRunner]:
    def open_gated(path: Path, options: Options, mode: Mode) -> GatedTask:
        return gated

    task = VisionTask("gated", open_gated, {"": Asset("model", 1)}, (), pb.FaceDetectionResponse)
    monkeypatch.setitem(tasks.TASKS, "gated", task)  # type: ignore[arg-type]
    yield TaskRunner(runtime, 64)
    gated.permits.release(1000)


async def run_ready() -> None:
    """Lets the event loop run all that is ready."""
    for _ in range(50):
        await asyncio.sleep(0)


async def numbers(answers: AsyncIterator[object]) -> list[int]:
    return [answer.frame_number async for answer in answers]  # type: ignore[attr-defined]


async def test_every_frame_is_answered_in_order(runner: TaskRunner, gated: GatedTask) -> None:
    gated.permits.release(200)
    assert await numbers(runner.stream("gated", Sender(200).frames(), {})) == list(range(200))


async def test_four_frames_are_in_flight_and_no_more(runner: TaskRunner, gated: GatedTask) -> None:
    sender = Sender(100)
    answers = runner.stream("gated", sender.frames(), {})
    first = asyncio.ensure_future(anext(answers))
    await run_ready()
    assert sender.taken == 4  # a fifth has been read and waits for room
    gated.permits.release(100)
    await first
    await run_ready()
    assert sender.taken == 5  # answers that are not taken hold it up as well
    assert await numbers(answers) == list(range(1, 100))


async def test_the_newest_frame_replaces_those_that_wait(
    runner: TaskRunner, gated: GatedTask
) -> None:
    sender = Sender(50)

    async def frames() -> Incoming:
        async for frame, options in sender.frames():
            yield frame, options
            if frame.number == 0:
                await gated.wait_begun()

    answers = runner.stream("gated", frames(), LATEST)
    first = asyncio.ensure_future(anext(answers))
    await asyncio.wait_for(sender.all_taken.wait(), LONG)
    gated.permits.release(50)
    assert (await first).frame_number == 0
    last = await anext(answers)
    assert (last.frame_number, last.frames_dropped) == (49, 48)
    with pytest.raises(StopAsyncIteration):
        await anext(answers)


async def test_a_frame_that_waits_for_a_core_is_replaced_too(
    runner: TaskRunner, gated: GatedTask
) -> None:
    other = asyncio.create_task(numbers(runner.stream("gated", Sender(1).frames(), {})))
    await gated.wait_begun()  # the one worker is taken
    sender = Sender(10)
    answers = runner.stream("gated", sender.frames(), LATEST)
    first = asyncio.ensure_future(anext(answers))
    await asyncio.wait_for(sender.all_taken.wait(), LONG)
    gated.permits.release(2)
    answer = await first
    assert (answer.frame_number, answer.frames_dropped) == (9, 9)
    assert await other == [0]


async def test_under_latest_too_an_error_ends_the_stream(
    runner: TaskRunner, runtime: VisionRuntime, gated: GatedTask
) -> None:
    """The frames after one that cannot be decoded must not replace the error."""
    ((_, key),), _ = encode_video([np.zeros((32, 32, 3), np.uint8)], "h264")
    sent = asyncio.Event()

    async def frames() -> Incoming:
        for position, data in enumerate((key, b"no video", key), 1):
            yield EncodedFrame(data, "h264", position=position), {}
        sent.set()
        await asyncio.Event().wait()

    answers = runner.stream("gated", frames(), LATEST)
    first = asyncio.ensure_future(anext(answers))
    await asyncio.wait_for(sent.wait(), LONG)
    for _ in range(10):  # each lets the decoder do one frame
        await asyncio.wrap_future(runtime.decode_pool.submit(lambda: None))
    await run_ready()
    gated.permits.release(2)
    await first
    with pytest.raises(UndecodableImageError, match="frame 2 of the stream"):
        await asyncio.wait_for(anext(answers), LONG)
    await answers.aclose()  # type: ignore[attr-defined]


async def test_an_error_comes_after_the_answers_before_it(
    runner: TaskRunner, gated: GatedTask
) -> None:
    gated.permits.release(50)
    answers = runner.stream("gated", Sender(10, bad=3).frames(), {})
    got = []
    with pytest.raises(FrameSizeError, match="frame 4 of the stream"):
        async for answer in answers:
            got.append(answer.frame_number)
            await run_ready()
    assert got == [0, 1, 2]


async def test_a_reader_that_is_cancelled_frees_the_model(
    runner: TaskRunner, gated: GatedTask
) -> None:
    sender = Sender(10**9)
    reader = asyncio.create_task(numbers(runner.stream("gated", sender.frames(), {})))
    await gated.wait_begun()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    taken = sender.taken
    gated.permits.release()  # the frame that runs ends; those that waited do not begin
    assert await asyncio.to_thread(gated.closed.wait, LONG)
    await run_ready()
    assert sender.taken == taken
    assert gated.permits.acquire(blocking=False) is False


async def test_the_newest_stream_of_a_caller_with_more_than_half_makes_room(
    runtime: VisionRuntime, runner: TaskRunner, gated: GatedTask
) -> None:
    runtime.streams = Places(2, "2 streams are open, which is the limit")
    gated.permits.release(20)

    async def endless() -> Incoming:
        async for one in Sender(1).frames():
            yield one
        await asyncio.Event().wait()

    def stream(name: str) -> AsyncIterator[pb.FaceDetectionResponse]:
        async def answers() -> AsyncIterator[pb.FaceDetectionResponse]:
            set_caller({CALLER_KEY: name})
            async with aclosing(runner.stream("gated", endless(), {})) as stream:  # type: ignore[type-var]
                async for answer in stream:
                    yield answer

        return answers()

    first, second = stream("a"), stream("a")
    await anext(first)
    await anext(second)
    newcomer = stream("b")
    await anext(newcomer)
    with pytest.raises(QueueFullError, match="another caller has asked"):
        await anext(second)
    assert runtime.streams.taken == 2
    for one in (first, newcomer):
        await one.aclose()  # type: ignore[attr-defined]
    assert runtime.streams.taken == 0


class HoldingTask:
    """A task that answers each frame when `ahead` more have come."""

    def __init__(self, ahead: int, bad: int = -1) -> None:
        self.held: list[Answer] = []
        self.closed = False
        self._ahead = ahead
        self._bad = bad

    def follow(self, frame: DecodedFrame, options: Options) -> list[Answer]:
        if frame.source.number == self._bad:
            raise OutOfRangeError("too much")
        self.held.append(Answer(pb.FaceDetectionResponse(), frame, 0.0))
        due = self.held[: -self._ahead]
        del self.held[: -self._ahead]
        return due

    def skip(self, frame: SkippedFrame) -> list[Answer]:
        self.held.append(skipped(pb.FaceDetectionResponse(), frame))
        return []

    def finish(self, options: Options) -> list[Answer]:
        due, self.held = self.held, []
        return due

    def close(self) -> None:
        self.closed = True


def hold(monkeypatch: pytest.MonkeyPatch, task: HoldingTask, *, every_frame: bool = False) -> None:
    stream_task = StreamTask("holding", (), lambda *_: task, every_frame)
    monkeypatch.setitem(tasks.STREAM_TASKS, "holding", stream_task)  # type: ignore[arg-type]


@pytest.mark.parametrize("frames", [1, 9, 60])
async def test_a_task_may_hold_back_more_answers_than_are_in_flight(
    runner: TaskRunner, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    task = HoldingTask(ahead=9)
    hold(monkeypatch, task)
    answers = runner.stream("holding", Sender(frames).frames(), {})
    assert await asyncio.wait_for(numbers(answers), LONG) == list(range(frames))
    assert task.closed


async def test_answers_of_a_task_that_holds_back_keep_the_limit(
    runner: TaskRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, HoldingTask(ahead=9))
    sender = Sender(100)
    answers = runner.stream("holding", sender.frames(), {})
    assert (await asyncio.wait_for(anext(answers), LONG)).frame_number == 0
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert sender.taken <= 9 + 1 + 4  # held back, taken, in flight
    assert await numbers(answers) == list(range(1, 100))


async def test_under_latest_the_answers_held_back_come_too(
    runner: TaskRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, HoldingTask(ahead=5))
    answers = [a async for a in runner.stream("holding", Sender(40).frames(), LATEST)]
    assert len(answers) + answers[-1].frames_dropped == 40  # type: ignore[union-attr]
    assert answers[-1].frame_number == 39  # type: ignore[union-attr]


async def test_answers_held_back_come_before_an_error(
    runner: TaskRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, HoldingTask(ahead=3, bad=7))
    answers = runner.stream("holding", Sender(20).frames(), {})
    got = []
    with pytest.raises(OutOfRangeError, match="too much"):
        async for answer in answers:
            got += [answer.frame_number]  # type: ignore[union-attr]
    assert got == list(range(7))


async def test_a_task_on_every_frame_takes_no_other_policy(
    runner: TaskRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, HoldingTask(ahead=1), every_frame=True)
    with pytest.raises(UnknownOptionError, match="must be every"):
        runner.stream("holding", Sender(1).frames(), LATEST)
