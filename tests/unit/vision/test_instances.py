"""Task instances: who uses them, how many fit, and what happens when a graph fails."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from shared.errors import (
    CallCancelledError,
    InternalError,
    InvalidModelError,
    ModelNotLoadedError,
    OutOfMemoryError,
)
from vision_svc.assets import Assets
from vision_svc.detector import Asset, Mode, VisionTask
from vision_svc.instances import DEFAULT_STEP_MS, MAX_STEP_MS, Instances
from vision_svc.options import Options

IMAGE = np.zeros((4, 4, 3), np.uint8)
LONG = 60.0  # seconds that only a fault can use up


class Graph:
    """A MediaPipe graph that can fail, which no real one does on frames that were checked."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.times: list[int] = []
        self.closed = threading.Event()

    def detect(self, image: np.ndarray, time_ms: int) -> pb.FaceDetectionResponse:
        if self.fails:
            raise RuntimeError("calculator failed at /some/path")
        self.times.append(time_ms)
        return pb.FaceDetectionResponse()

    def close(self) -> None:
        self.closed.set()


class World:
    """Instances of two tasks on files that exist, and the graphs that were opened."""

    def __init__(self, folder: Path, memory_mb: int = 100, max_idle: int = 2) -> None:
        (folder / "model").write_bytes(b"1")
        self.graphs: list[Graph] = []
        self.failures = 0
        self.fails = False
        self.tracker = VisionTask(
            "tracker", self._open, {"": Asset("model", 40)}, (), pb.FaceDetectionResponse
        )
        self.stateless = VisionTask(
            "stateless",
            self._open,
            {"": Asset("model", 40)},
            (),
            pb.FaceDetectionResponse,
            keeps_state=False,
        )
        self.instances = Instances(Assets(folder), memory_mb, max_idle, self._failed)

    def _open(self, path: Path, options: Options, mode: Mode) -> Graph:
        self.graphs.append(Graph(self.fails))
        return self.graphs[-1]

    def _failed(self) -> None:
        self.failures += 1


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_an_instance_of_a_file_that_was_replaced_is_not_used_again(
    world: World, tmp_path: Path
) -> None:
    """It was in use when another model of the same name was loaded, and is released later."""
    before = world.instances.acquire(world.stateless, {}, Mode.IMAGE)
    (tmp_path / "new").write_bytes(b"2")
    os.utime(tmp_path / "new", ns=(1, 1))
    (tmp_path / "new").replace(tmp_path / "model")
    world.instances.drop_idle(world.stateless)
    world.instances.release(before)
    with world.instances.borrow(world.stateless, {}, Mode.IMAGE) as after:
        assert after is not before


def test_trackers_are_closed_and_others_kept(world: World) -> None:
    for task, mode, kept in (
        (world.tracker, Mode.VIDEO, False),
        (world.tracker, Mode.IMAGE, True),
        (world.stateless, Mode.VIDEO, True),
    ):
        first = world.instances.acquire(task, {}, mode)
        world.instances.release(first)
        if not kept:
            assert world.graphs[-1].closed.wait(LONG)
        second = world.instances.acquire(task, {}, mode)
        assert (second is first) is kept
        world.instances.release(second)


def test_other_options_are_another_instance(world: World) -> None:
    first = world.instances.acquire(world.stateless, {"max_faces": 1}, Mode.IMAGE)
    world.instances.release(first)
    assert world.instances.acquire(world.stateless, {"max_faces": 2}, Mode.IMAGE) is not first


def test_the_budget(world: World) -> None:
    held = [world.instances.acquire(world.tracker, {}, Mode.VIDEO) for _ in range(2)]
    with pytest.raises(OutOfMemoryError, match="of 100 MiB are in use"):
        world.instances.acquire(world.tracker, {}, Mode.VIDEO)
    world.instances.release(held[0])
    assert world.graphs[0].closed.wait(LONG)
    world.instances.shut_down()
    world.instances.acquire(world.tracker, {}, Mode.VIDEO)


def test_a_large_file_takes_more_of_the_budget(world: World, tmp_path: Path) -> None:
    with (tmp_path / "model").open("r+b") as file:
        file.truncate(12 << 20)
    held = world.instances.acquire(world.tracker, {}, Mode.VIDEO)
    assert held.memory_mb == 48
    world.instances.acquire(world.tracker, {}, Mode.VIDEO)
    with (tmp_path / "model").open("r+b") as file:
        file.truncate(30 << 20)
    with pytest.raises(OutOfMemoryError, match="needs 120 MiB, and 96 of 100 MiB are in use"):
        world.instances.acquire(world.stateless, {}, Mode.VIDEO)


def test_a_file_of_the_set_that_cannot_be_opened_is_no_fault_of_the_caller(world: World) -> None:
    def refuse(path: Path, options: Options, mode: Mode) -> Graph:
        raise RuntimeError("no model")

    task = VisionTask("broken", refuse, {"": Asset("model", 40)}, (), pb.FaceDetectionResponse)
    for _ in range(3):  # a budget of two: what was refused takes nothing
        with pytest.raises(InternalError, match="model cannot be opened as broken"):
            world.instances.acquire(task, {}, Mode.IMAGE)


def test_idle_instances_make_room(world: World) -> None:
    for _ in range(2):
        first = world.instances.acquire(world.stateless, {}, Mode.IMAGE)
        second = world.instances.acquire(world.tracker, {}, Mode.IMAGE)
        world.instances.release(first)
        world.instances.release(second)
    held = [world.instances.acquire(world.tracker, {}, Mode.VIDEO) for _ in range(2)]
    assert all(graph.closed.wait(LONG) for graph in world.graphs[:2])
    assert len({*held}) == 2


def test_the_clock_always_increases(world: World) -> None:
    instance = world.instances.acquire(world.tracker, {}, Mode.VIDEO)
    for step in (20, 0, -5, MAX_STEP_MS, MAX_STEP_MS + 1, 2**63):
        instance.detect(IMAGE, step)
    times = world.graphs[0].times
    steps = [b - a for a, b in zip([0, *times], times, strict=False)]
    assert steps == [20, *[DEFAULT_STEP_MS] * 2, MAX_STEP_MS, *[DEFAULT_STEP_MS] * 2]


def test_a_failed_graph_is_counted_hidden_and_not_kept(world: World) -> None:
    world.fails = True
    instance = world.instances.acquire(world.stateless, {}, Mode.IMAGE)
    with pytest.raises(InternalError) as raised:
        instance.detect(IMAGE)
    assert "/" not in raised.value.message
    assert world.failures == 1
    world.instances.release(instance)
    assert world.graphs[0].closed.wait(LONG)
    assert world.instances.acquire(world.stateless, {}, Mode.IMAGE) is not instance


def test_a_closed_instance_answers_no_more(world: World) -> None:
    instance = world.instances.acquire(world.tracker, {}, Mode.VIDEO)
    instance.close()
    instance.close()
    with pytest.raises(CallCancelledError):
        instance.detect(IMAGE)


def test_an_instance_in_use_is_closed_after_its_frame(world: World) -> None:
    """A cancelled stream releases its instance while its frame still runs in a thread."""
    instance = world.instances.acquire(world.stateless, {}, Mode.IMAGE)
    graph = world.graphs[0]
    running, go_on = threading.Event(), threading.Event()

    def slow(image: np.ndarray, time_ms: int) -> pb.FaceDetectionResponse:
        running.set()
        assert go_on.wait(LONG)
        assert not graph.closed.is_set()
        return pb.FaceDetectionResponse()

    graph.detect = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=instance.detect, args=(IMAGE,))
    thread.start()
    assert running.wait(LONG)
    world.instances.release(instance)
    assert not graph.closed.wait(0.05)
    go_on.set()
    thread.join(LONG)
    assert graph.closed.wait(LONG)


def test_a_file_that_is_missing_or_not_a_model(world: World, tmp_path: Path) -> None:
    from vision_svc.tasks import FACE_DETECTION, HAIR_SEGMENTATION, HAND_TRACKING

    for task in (FACE_DETECTION, HAND_TRACKING, HAIR_SEGMENTATION):
        with pytest.raises(ModelNotLoadedError, match=task.default_asset.file):
            options = {"face_range": "short", "mask_format": "binary"}
            world.instances.acquire(task, options, Mode.IMAGE)
        with pytest.raises(InvalidModelError):
            world.instances.try_model(task, tmp_path / "model")


def test_the_memory_of_a_file_is_that_of_its_instances(tmp_path: Path) -> None:
    world = World(tmp_path)
    file = tmp_path / "model"
    first = world.instances.acquire(world.stateless, {}, Mode.IMAGE)
    second = world.instances.acquire(world.stateless, {}, Mode.IMAGE)
    taken = first.memory_mb + second.memory_mb
    assert world.instances.memory_mb_of(file) == taken > 0
    world.instances.release(first)  # idle: it keeps its memory
    assert world.instances.memory_mb_of(file) == taken
    world.instances.close(second)
    assert world.instances.memory_mb_of(file) == first.memory_mb
    world.instances.shut_down()
    assert world.instances.memory_mb_of(file) == 0
