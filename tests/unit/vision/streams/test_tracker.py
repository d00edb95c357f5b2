"""A stream's instance: opened by the first frame, again for another size, freed by any thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from shared.errors import CallCancelledError
from vision_svc.assets import Assets
from vision_svc.detector import Asset, Mode, VisionTask
from vision_svc.frames.types import (
    DecodedFrame,
    EncodedFrame,
)
from vision_svc.instances import Instances
from vision_svc.options import Options
from vision_svc.streams.tracker import Tracker

LONG = 60.0


class Graph:
    """A model that records the times of its frames."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.closed = threading.Event()

    def detect(self, image: np.ndarray, time_ms: int) -> pb.FaceDetectionResponse:
        self.times.append(time_ms)
        return pb.FaceDetectionResponse()

    def close(self) -> None:
        self.closed.set()


class World:
    """A budget for one instance, and the graphs that were opened."""

    def __init__(self, folder: Path) -> None:
        (folder / "model").write_bytes(b"1")
        self.graphs: list[Graph] = []
        self.instances = Instances(Assets(folder), 50, 1, lambda: None)

    def tracker(self, *, keeps_state: bool = True) -> Tracker:
        task = VisionTask(
            "tracker",
            self._open,
            {"": Asset("model", 40)},
            (),
            pb.FaceDetectionResponse,
            keeps_state=keeps_state,
        )
        return Tracker(self.instances, task)

    def _open(self, path: Path, options: Options, mode: Mode) -> Graph:
        self.graphs.append(Graph())
        return self.graphs[-1]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def frame(width: int, height: int, timestamp_ms: int = 0) -> DecodedFrame:
    source = EncodedFrame(b"", "rgb", timestamp_ms=timestamp_ms)
    return DecodedFrame(np.zeros((height, width, 3), np.uint8), source, 0.0)


def test_it_follows_the_callers_clock(world: World) -> None:
    tracker = world.tracker()
    for timestamp in (5000, 5040, 5040, 4000, 4100):
        tracker.detect(frame(4, 4, timestamp), {})
    assert np.diff(world.graphs[0].times).tolist() == [40, 33, 33, 100]


def test_another_size_opens_a_new_instance(world: World) -> None:
    tracker = world.tracker()
    for size in ((4, 4), (4, 4), (4, 2), (2, 4), (2, 4)):
        tracker.detect(frame(*size), {})
    assert [len(graph.times) for graph in world.graphs] == [2, 1, 2]
    assert [graph.closed.is_set() for graph in world.graphs] == [True, True, False]


def test_a_task_without_state_takes_any_size(world: World) -> None:
    tracker = world.tracker(keeps_state=False)
    for size in ((4, 4), (4, 2)):
        tracker.detect(frame(*size), {})
    assert len(world.graphs) == 1


def test_a_closed_one_frees_all_and_opens_nothing(world: World) -> None:
    tracker = world.tracker()
    tracker.detect(frame(4, 4), {})
    for _ in range(2):
        tracker.close()
    assert world.graphs[0].closed.wait(LONG)
    for size in ((4, 4), (4, 2)):
        with pytest.raises(CallCancelledError):
            tracker.detect(frame(*size), {})
    assert len(world.graphs) == 1


def test_one_that_is_closed_while_its_model_is_read_frees_it(world: World) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def open_slowly(path: Path, options: Options, mode: Mode) -> Graph:
        reading.set()
        assert go_on.wait(LONG)
        world.graphs.append(Graph())
        return world.graphs[-1]

    task = VisionTask("slow", open_slowly, {"": Asset("model", 40)}, (), pb.FaceDetectionResponse)
    tracker = Tracker(world.instances, task)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(tracker.detect, frame(4, 4), {})
        assert reading.wait(LONG)
        tracker.close()
        go_on.set()
        with pytest.raises(CallCancelledError):
            running.result(LONG)
    assert world.graphs[0].closed.wait(LONG)
