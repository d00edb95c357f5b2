"""Answers of streams: order, isolation, frame policies, clocks, formats and options."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from tests.integration.vision.conftest import Vision
from tests.integration.vision.helpers import error_of, person
from tests.integration.vision.reference import REFERENCES
from tests.support.vision_frames import encode_clip, encode_still, encode_video, rgb_frames
from tools import vision_clips

PORTRAIT = "portrait_hair.jpg"


def mirrored(frames: list[np.ndarray]) -> list[np.ndarray]:
    return [np.ascontiguousarray(image[:, ::-1]) for image in frames]


def somebody_else(picture: Path, count: int) -> list[np.ndarray]:
    """A clip of 640 by 480 in which another person's portrait moves."""
    portrait = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
    scale = min(480 / portrait.shape[0], 640 / portrait.shape[1])
    small = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    frame = np.full((480, 640, 3), 90, np.uint8)
    frame[: small.shape[0], : small.shape[1]] = small[:480, :640]
    return [np.roll(frame, 2 * step, axis=1) for step in range(count)]


def test_two_different_people_at_once(vision: Vision, vision_models: Path, test_data: Path) -> None:
    get_their_own(vision, vision_models, person(20), somebody_else(test_data / PORTRAIT, 20))


def test_two_people_at_once_get_their_own_results(vision: Vision, vision_models: Path) -> None:
    get_their_own(vision, vision_models, person(20), mirrored(person(20)))


def get_their_own(
    vision: Vision, vision_models: Path, left: list[np.ndarray], right: list[np.ndarray]
) -> None:
    """Streams two people, nobody, and the first one again, all at once."""
    empty = [np.full_like(image, 90) for image in left]
    clips = (left, right, empty, left)
    reference = REFERENCES["mesh"]
    with ThreadPoolExecutor(len(clips)) as clients:
        answers = list(
            clients.map(lambda clip: list(vision.stub.StreamFaceMesh(rgb_frames(clip))), clips)
        )
    for clip, ours in zip(clips, answers, strict=True):
        for answer, result in zip(ours, reference.run(vision_models, clip), strict=True):
            reference.compare(answer, result, (640, 480))
    assert all(answer.faces for answer in answers[0] + answers[1])
    assert not any(answer.faces for answer in answers[2])


@pytest.mark.parametrize("rpc", ["StreamFaceDetection", "StreamSelfieSegmentation"])
def test_idle_instances_remember_nothing(vision: Vision, rpc: str) -> None:
    """These two keep instances for the next stream, which must not see the earlier frames."""
    here, there = person(4), mirrored(person(4))
    nobody = [np.full_like(here[0], 120)] * 4

    def run(clip: list[np.ndarray]) -> list[bytes]:
        answers = list(getattr(vision.stub, rpc)(rgb_frames(clip)))
        for answer in answers:
            answer.ClearField("timing")
        return [answer.SerializeToString(deterministic=True) for answer in answers]

    first = [run(clip) for clip in (here, there, nobody)]
    for _ in range(2):
        for clip, before in zip((nobody, here, there), (first[2], *first[:2]), strict=True):
            assert run(clip) == before


@pytest.mark.parametrize("rpc", ["DetectFaces", "DetectPose", "DetectHands"])
def test_pictures_do_not_see_each_other(vision: Vision, rpc: str) -> None:
    pictures = [vision_clips.astronaut(), vision_clips.drawn_hand(), np.zeros((90, 160, 3), "u1")]

    def run(image: np.ndarray) -> bytes:
        data, _ = encode_still(image, "png")
        answer = getattr(vision.stub, rpc)(pb.ImageRequest(image_data=data, format="png"))
        answer.ClearField("timing")
        return bytes(answer.SerializeToString(deterministic=True))

    first = [run(image) for image in pictures]
    assert [run(image) for image in pictures[::-1]] == first[::-1]


def test_the_latest_frame_wins(vision: Vision) -> None:
    (image,) = person(1)
    sent = 200
    messages = [
        pb.VideoFrame(
            frame_data=image.tobytes(), format="rgb", width=640, height=480, frame_number=number
        )
        for number in range(sent)
    ]
    dropped_before = vision.metric("vision_frames_dropped_total", task="face-mesh")
    call = vision.stub.StreamFaceMesh(iter(messages), metadata=[("frame-policy", "latest")])
    answers = list(call)
    numbers = [answer.frame_number for answer in answers]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == sent - 1
    dropped = answers[-1].frames_dropped
    assert dropped > 0
    assert len(answers) + dropped == sent
    assert (
        vision.metric("vision_frames_dropped_total", task="face-mesh") - dropped_before == dropped
    )
    drops = [answer.frames_dropped for answer in answers]
    assert drops == sorted(drops)


def test_latest_decodes_all_of_a_video(vision: Vision) -> None:
    """A frame that is not answered is still needed to decode later ones."""
    messages, pixels = encode_clip(person(40), "h264")
    answers = list(
        vision.stub.StreamFaceMesh(iter(messages), metadata=[("frame-policy", "latest")])
    )
    assert answers[-1].frame_number == len(pixels) - 1
    assert len(answers) + answers[-1].frames_dropped == len(pixels)
    assert answers[0].faces


def test_an_unknown_frame_policy_is_refused(vision: Vision) -> None:
    call = vision.stub.StreamFaceMesh(rgb_frames(person(1)), metadata=[("frame-policy", "some")])
    assert error_of(call).code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "clock",
    [
        pytest.param([0] * 8, id="still"),
        pytest.param([700, 600, 500, 400, 300, 200, 100, 0], id="back"),
        pytest.param([-5, -900, -5, 3, -(2**63), 2**63 - 1, 0, 0], id="wild"),
    ],
)
@pytest.mark.parametrize("task", ["mesh", "pose", "faces"])
def test_any_clock_of_the_client(vision: Vision, task: str, clock: list[int]) -> None:
    messages = []
    for message, time_ms in zip(rgb_frames(person(len(clock))), clock, strict=True):
        message.timestamp_ms = time_ms
        messages.append(message)
    answers = list(getattr(vision.stub, REFERENCES[task].rpc)(iter(messages)))
    assert [answer.timestamp_ms for answer in answers] == clock
    assert all(answer.ByteSize() > 100 for answer in answers)


def test_the_format_and_size_may_change(vision: Vision) -> None:
    clip = person(12)
    small = [image[::2, ::2].copy() for image in clip]
    parts = [
        encode_clip(clip[:2], "rgb")[0],
        encode_clip(clip[2:8], "h264")[0],
        encode_clip(clip[8:9], "jpeg")[0],
        encode_clip(small[9:11], "nv12")[0],
        encode_clip(clip[2:6], "vp8")[0],
        encode_clip(small[2:6], "h264")[0],
    ]
    messages = list(itertools.chain(*parts))
    for number, message in enumerate(messages):
        message.frame_number = number
    answers = list(vision.stub.StreamFaceMesh(iter(messages)))
    assert sorted(answer.frame_number for answer in answers) == list(range(len(messages)))
    assert all(answer.faces for answer in answers)


@pytest.mark.parametrize("task", [task for task in REFERENCES if task != "hands"])
def test_the_size_may_change_while_somebody_is_there(vision: Vision, task: str) -> None:
    """As of a camera that is turned: MediaPipe's holistic graph fails if it continues tracking."""
    clip = [image[:, :400].copy() if i % 4 > 1 else image for i, image in enumerate(person(8))]
    messages = [message for image in clip for message in rgb_frames([image])]
    answers = list(getattr(vision.stub, REFERENCES[task].rpc)(iter(messages)))
    assert len(answers) == len(clip)
    assert vision.metric("vision_failed_graphs_total") == 0
    if task == "holistic":
        assert all(answer.HasField("pose") and answer.HasField("face") for answer in answers)


def test_parameter_sets_on_their_own(vision: Vision) -> None:
    packets, pixels = encode_video(person(6), "h264", tune="zerolatency")
    first = packets[0][1]
    cut = first.index(b"\0\0\1\x65")  # the first slice of the picture
    parts = [first[:cut], first[cut:], *(data for _, data in packets[1:])]
    messages = [
        pb.VideoFrame(frame_data=data, format="H264", frame_number=number)
        for number, data in enumerate(parts)
    ]
    answers = list(vision.stub.StreamFaceDetection(iter(messages)))
    assert [answer.frame_number for answer in answers] == list(range(1, len(pixels) + 1))
    assert all(answer.faces for answer in answers)


def test_without_reordering_h264_is_answered_at_once(vision: Vision) -> None:
    packets, _ = encode_video(person(6), "h264", tune="zerolatency")
    answered = threading.Semaphore(1)

    def lock_step() -> Iterator[pb.VideoFrame]:
        for number, data in packets:
            assert answered.acquire(timeout=60)
            yield pb.VideoFrame(frame_data=data, format="h264", frame_number=number)

    for expected, answer in enumerate(vision.stub.StreamFaceDetection(lock_step())):
        assert answer.frame_number == expected
        answered.release()


def test_a_caller_chooses_how_long_its_stream_may_idle(vision: Vision) -> None:
    closed = threading.Event()

    def quiet() -> Iterator[pb.VideoFrame]:
        yield from rgb_frames(person(1))
        closed.wait(60)

    call = vision.stub.StreamFaceMesh(quiet(), metadata=[("vision-idle-seconds", "1")])
    assert next(call).faces
    error = error_of(call)
    closed.set()
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "no message for 1 s, the longest that a stream may idle"


def test_options_come_in_two_ways(vision: Vision) -> None:
    face = vision_clips.astronaut()[:300, 80:380]
    two = np.hstack([face, face[:, ::-1]])
    one_face = list(vision.stub.StreamFaceMesh(rgb_frames([two] * 2)))
    assert [len(answer.faces) for answer in one_face] == [1, 1]
    by_call = vision.stub.StreamFaceMesh(
        rgb_frames([two] * 2), metadata=[("vision-max-faces", "2"), ("x-other", "ignored")]
    )
    assert [len(answer.faces) for answer in by_call] == [2, 2]
    messages = list(rgb_frames([two] * 2))
    for message in messages:
        message.metadata["max_faces"] = "2"
    assert [len(a.faces) for a in vision.stub.StreamFaceMesh(iter(messages))] == [2, 2]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_hands", "2", "max_faces"),
        ("nonsense", "1", "min_detection_confidence"),
        ("max_faces", "0", "from 1 to 16"),
        ("max_faces", "17", "from 1 to 16"),
        ("max_faces", "one", "from 1 to 16"),
        ("min_detection_confidence", "nan", "from 0 to 1"),
        ("min_tracking_confidence", "1.5", "from 0 to 1"),
    ],
)
def test_options_that_are_refused(vision: Vision, name: str, value: str, expected: str) -> None:
    (message,) = rgb_frames(person(1))
    message.metadata[name] = value
    error = error_of(vision.stub.StreamFaceMesh(iter([message])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert expected in error.details()


def test_options_cannot_change_in_a_stream(vision: Vision) -> None:
    messages = list(rgb_frames(person(3)))
    messages[0].metadata["max_faces"] = "2"
    messages[2].metadata["max_faces"] = "3"
    error = error_of(vision.stub.StreamFaceMesh(iter(messages)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "frame 3" in error.details()


def test_a_stream_without_frames_is_no_error(vision: Vision) -> None:
    assert list(vision.stub.StreamHolisticTracking(iter([]))) == []
