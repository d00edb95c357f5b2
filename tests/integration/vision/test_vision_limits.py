"""How streams end, and the limits on streams, instances and failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import grpc
import pytest

from ml import mediapipe_pb2 as pb
from tests.integration.vision.conftest import StartVision, Vision
from tests.integration.vision.helpers import error_of, person
from tests.support.processes import ROOT
from tests.support.stack import wait_for
from tests.support.vision_frames import encode_still, rgb_frames


def endless(message: pb.VideoFrame, stop: threading.Event) -> Iterator[pb.VideoFrame]:
    while not stop.is_set():
        yield message


def idle(vision: Vision) -> bool:
    """Whether no stream has left anything behind."""
    return (
        vision.metric("vision_open_streams") == 0
        and vision.metric("vision_instances", task="face-mesh") == 0
        and vision.metric("grpc_server_in_flight", grpc_service="ml.MediapipeService") == 0
    )


@pytest.mark.parametrize("end", ["half-close", "cancel"])
def test_the_end_of_a_stream_frees_all(vision: Vision, end: str) -> None:
    wait_for("an idle service", lambda: idle(vision))
    (message,) = rgb_frames(person(1))
    stop = threading.Event()
    calls = [vision.stub.StreamFaceMesh(endless(message, stop)) for _ in range(3)]
    for call in calls:
        for _ in range(3):
            next(call)
    assert vision.metric("vision_open_streams") == 3
    assert vision.metric("vision_instances", task="face-mesh") == 3
    stop.set()
    for call in calls:
        if end == "cancel":
            call.cancel()
        else:
            list(call)
    wait_for("all freed", lambda: idle(vision))


def test_a_client_that_is_killed_frees_all(vision: Vision) -> None:
    wait_for("an idle service", lambda: idle(vision))
    client = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.vision.endless_client", vision.address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert client.stdout
        assert client.stdout.readline()
        assert vision.metric("vision_open_streams") == 1
    finally:
        os.killpg(client.pid, signal.SIGKILL)
        client.communicate()
    wait_for("all freed", lambda: idle(vision))


def test_a_thousand_streams_opened_and_dropped(vision: Vision) -> None:
    wait_for("an idle service", lambda: idle(vision))
    (message,) = rgb_frames(person(1))
    list(vision.stub.StreamFaceMesh(iter([message] * 3)))
    wait_for("an idle service", lambda: idle(vision))
    threads, rss = vision.threads(), vision.rss()
    for number in range(1000):
        stop = threading.Event()
        call = vision.stub.StreamFaceMesh(endless(message, stop) if number % 10 == 0 else iter([]))
        call.cancel()
        stop.set()
    wait_for("all freed", lambda: idle(vision), 120)
    assert vision.threads() <= threads + 16
    assert vision.rss() - rss < 100 << 20
    assert next(vision.stub.StreamFaceMesh(iter([message]))).faces


def test_streams_are_capped(start_vision: StartVision) -> None:
    vision = start_vision(max_streams="2")
    (message,) = rgb_frames(person(1))
    stop = threading.Event()
    calls = [vision.stub.StreamFaceMesh(endless(message, stop)) for _ in range(2)]
    for call in calls:
        next(call)
    error = error_of(vision.stub.StreamFaceMesh(iter([message])))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 streams" in error.details()
    # Single pictures do not wait behind streams, which are both still running here.
    data, _ = encode_still(person(1)[0], "jpeg")
    assert vision.stub.DetectFaces(pb.ImageRequest(image_data=data, format="jpeg")).faces
    assert all(call.is_active() for call in calls)
    stop.set()
    for call in calls:
        list(call)
    wait_for("free places", lambda: vision.metric("vision_open_streams") == 0)
    assert list(vision.stub.StreamFaceMesh(iter([message])))


def test_instances_have_a_memory_budget(start_vision: StartVision) -> None:
    vision = start_vision(instance_memory_mb="64")
    (message,) = rgb_frames(person(1))
    error = error_of(vision.stub.StreamHolisticTracking(iter([message])))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "64 MiB" in error.details()
    # Idle instances make room for new ones.
    data, _ = encode_still(person(1)[0], "jpeg")
    request = pb.ImageRequest(image_data=data, format="jpeg")
    for _ in range(2):
        assert vision.stub.DetectPose(request).poses
        assert vision.stub.DetectFaces(request).faces


def test_after_some_failed_graphs_the_process_ends(start_vision: StartVision) -> None:
    """The process ends in order, and its supervisor starts it again."""
    module = "tests.integration.vision.failing_service"
    vision = start_vision(module, max_failed_graphs="2", drain_seconds="0")
    data, _ = encode_still(person(1)[0], "jpeg")
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as raised:
            vision.stub.DetectFaces(pb.ImageRequest(image_data=data, format="jpeg"))
        assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert vision.process.wait(60) == 0


def test_a_graph_that_hangs_ends_the_process(start_vision: StartVision) -> None:
    """Its callers are told, others are served meanwhile, and the supervisor sees a failure."""
    module = "tests.integration.vision.hanging_service"
    vision = start_vision(module, workers="2", hang_seconds="2", drain_seconds="1")
    (message,) = rgb_frames(person(1))
    data, _ = encode_still(person(1)[0], "jpeg")
    picture = pb.ImageRequest(image_data=data, format="jpeg")
    stream = vision.stub.StreamFaceDetection(iter([message]), timeout=120)
    hung = vision.stub.DetectFaces.future(picture, timeout=120)
    assert vision.stub.DetectPose(picture, timeout=120).poses
    for error in (error_of(stream), hung.exception()):
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "did not come to an end within 2 s" in error.details()
    assert vision.process.wait(120) == 1
