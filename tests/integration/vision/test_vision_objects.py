"""Objects in live video, through the real server: ids, and labels that callers name."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from tests.integration.vision.conftest import Vision
from tests.integration.vision.helpers import error_of
from tests.support.vision_frames import rgb_frames
from tools import vision_clips

OPTIONS = {"min_detection_confidence": "0.4"}


def with_options(images: Iterator[np.ndarray], **options: str) -> Iterator[pb.VideoFrame]:
    for number, message in enumerate(rgb_frames(images)):
        if number == 0:
            message.metadata.update(options)
        yield message


def hidden_cup(frames: int, hidden: range) -> Iterator[np.ndarray]:
    """The cat and the cup that pass each other; in some frames the cup is hidden."""
    for number, image in enumerate(vision_clips.crossing(frames)):
        if number in hidden:
            image[220:] = 200
        yield image


def test_ids_outlast_an_occlusion_and_a_crossing(vision: Vision) -> None:
    hidden = range(20, 34)
    clip = with_options(hidden_cup(60, hidden), **OPTIONS)
    answers = list(vision.stub.StreamObjectTracking(clip))
    assert len(answers) == 60
    numbers = {"cat": set(), "cup": set()}
    for number, answer in enumerate(answers):
        assert answer.frame_number == number
        assert answer.timing.inference_ms > 0
        for each in answer.objects:
            numbers["cat" if each.label.lower() == "cat" else "cup"].add(each.track_id)
            assert each.trajectory[-1] == each.bbox
            assert len(each.trajectory) <= 30
        if number in hidden:
            assert [each.label.lower() for each in answer.objects] == ["cat"]
    assert numbers == {"cat": {1}, "cup": {2}} or numbers == {"cat": {2}, "cup": {1}}
    assert len(answers[-1].objects) == 2
    assert len(answers[-1].objects[0].trajectory) == 30


def test_tracked_boxes_are_those_of_detection(vision: Vision) -> None:
    found = vision.stub.StreamObjectDetection(with_options(vision_clips.crossing(6), **OPTIONS))
    tracked = vision.stub.StreamObjectTracking(with_options(vision_clips.crossing(6), **OPTIONS))
    for ours, theirs in zip(tracked, found, strict=True):
        assert {each.bbox.SerializeToString() for each in ours.objects} == {
            each.bbox.SerializeToString() for each in theirs.objects
        }


def test_streams_at_once_have_ids_of_their_own(vision: Vision) -> None:
    def ids(_: int) -> set[int]:
        clip = with_options(vision_clips.crossing(8), **OPTIONS)
        answers = vision.stub.StreamObjectTracking(clip)
        return {each.track_id for answer in answers for each in answer.objects}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ids, range(4))) == [{1, 2}] * 4


def test_tracks_start_over_when_the_size_changes(vision: Vision) -> None:
    small = [np.ascontiguousarray(image[::2, ::2]) for image in vision_clips.crossing(2)]
    frames = [*with_options(vision_clips.crossing(3), **OPTIONS), *rgb_frames(small)]
    answers = list(vision.stub.StreamObjectTracking(iter(frames)))
    assert [len(answer.objects[0].trajectory) for answer in answers] == [1, 2, 3, 1, 2]


def test_a_cup_in_3d_in_every_frame(vision: Vision) -> None:
    clip = vision_clips.moving(vision_clips.coffee(), 20)
    answers = list(
        vision.stub.StreamObjectDetection3D(
            with_options(clip, object_class="cup", max_objects="1", **OPTIONS)
        )
    )
    assert len(answers) == 20
    for number, answer in enumerate(answers):
        assert answer.frame_number == number
        assert answer.timing.inference_ms > 0
        (cup,) = answer.objects
        assert cup.label == "cup"
        assert len(cup.keypoints_3d) == len(cup.keypoints_2d) == 9
        # With the default focal length a point is seen where it is lifted to, but for noise.
        for lifted, seen in zip(cup.keypoints_3d, cup.keypoints_2d, strict=True):
            assert abs((1 - lifted.x / lifted.z) / 2 - seen.x) < 0.1
            assert abs((1 + lifted.y / lifted.z) / 2 - seen.y) < 0.1


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("object_class", "shoe", "must be one of sneakers, chair, cup, camera, not 'shoe'"),
        ("focal_x", "0", "must be a number from 0.1 to 20, not '0'"),
        ("focal_y", "nan", "must be a number from 0.1 to 20"),
        ("allow_labels", "Mug", "is not known; it must be one of max_objects, object_class"),
    ],
)
def test_options_in_3d_that_are_refused(vision: Vision, option: str, value: str, says: str) -> None:
    clip = with_options(vision_clips.crossing(1), **{option: value})
    error = error_of(vision.stub.StreamObjectDetection3D(clip))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in error.details()


@pytest.mark.parametrize("rpc", ["StreamObjectDetection", "StreamObjectTracking"])
def test_labels_that_callers_name(vision: Vision, rpc: str) -> None:
    call = getattr(vision.stub, rpc)
    answers = list(call(with_options(vision_clips.crossing(2), allow_labels="CAT", **OPTIONS)))
    assert [[each.label.lower() for each in a.objects] for a in answers] == [["cat"]] * 2
    error = error_of(call(with_options(vision_clips.crossing(2), deny_labels="unicorn")))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "option deny_labels names 'unicorn'" in error.details()
    error = error_of(call(with_options(vision_clips.crossing(2), max_objects="0")))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "max_objects must be a whole number from 1 to 100" in error.details()
