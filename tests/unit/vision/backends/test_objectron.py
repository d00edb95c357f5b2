"""Boxes in 3D: as mediapipe 0.10.21, the last with Objectron, on the same pictures."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from shared.errors import InvalidModelError
from tests.unit.vision.backends.test_box_lift import SEEN as CUP
from tools import vision_clips
from tools.models import model_dir
from tools.models.bundles import read_bundle, write_bundle
from vision_svc.assets import Assets
from vision_svc.detector import Mode
from vision_svc.instances import Instances
from vision_svc.options import parse_options
from vision_svc.tasks import OBJECT_DETECTION_3D

BUNDLE = OBJECT_DETECTION_3D.default_asset.file
# mp.solutions.objectron, models "Chair" and "Shoe", min_detection_confidence=0.3,
# min_tracking_confidence=0.1: the nine points, or the centre.
CHAIR = [
    *((0.1976, 0.8331), (0.0368, 0.97), (0.2898, 0.9876), (0.0184, 0.741), (0.3027, 0.7337)),
    *((0.1241, 0.9012), (0.3306, 0.9027), (0.1147, 0.711), (0.3406, 0.7089)),
]
# The detector's boxes there are in fractions of pixels and here in pixels, and so are the crops.
TOLERANCE = 0.015


@pytest.fixture(scope="module")
def folder() -> Path:
    path = model_dir() / "vision"
    if not (path / BUNDLE).is_file():
        pytest.skip(f"there is no {path / BUNDLE}: run `make models`")
    return path


@pytest.fixture
def instances(folder: Path) -> Instances:
    return Instances(Assets(folder), 500, 0, lambda: None)


def find(
    instances: Instances, images: Iterable[np.ndarray], mode: Mode = Mode.IMAGE, **options: str
) -> list[list[pb.Object3D]]:
    parsed = parse_options(
        OBJECT_DETECTION_3D.options, {"min_detection_confidence": "0.3", **options}
    )
    with instances.borrow(OBJECT_DETECTION_3D, parsed, mode) as instance:
        return [list(instance.detect(image).objects) for image in images]


def points(found: pb.Object3D) -> np.ndarray:
    return np.array([(point.x, point.y) for point in found.keypoints_2d])


def test_a_cup_as_by_mediapipe(instances: Instances) -> None:
    ((cup,),) = find(instances, [vision_clips.coffee()], object_class="cup")
    assert (cup.label, len(cup.keypoints_3d)) == ("cup", 9)
    assert cup.confidence > 0.9
    assert np.abs(points(cup) - CUP).max() < TOLERANCE
    box = cup.bbox
    assert points(cup).min(0) == pytest.approx([box.x, box.y], abs=1e-6)
    assert points(cup).max(0) == pytest.approx([box.x + box.width, box.y + box.height], abs=1e-6)
    centre = cup.keypoints_3d[0]
    assert (cup.pose.x, cup.pose.y, cup.pose.z) == (centre.x, centre.y, centre.z)
    assert centre.z < 0
    turn = np.array(cup.rotation).reshape(3, 3)
    assert turn @ turn.T == pytest.approx(np.eye(3), abs=1e-5)
    assert max(cup.scale) == pytest.approx(1)


def test_a_chair_and_shoes_as_by_mediapipe(instances: Instances) -> None:
    if not vision_clips.TEST_DATA.is_dir():
        pytest.skip("the folder ../shared/testdata is not there")
    four_1, four_2 = (
        vision_clips.read_picture(vision_clips.TEST_DATA / f"hand_four_{n}.jpg") for n in (1, 2)
    )
    ((chair,),) = find(instances, [four_1], object_class="chair")
    assert np.abs(points(chair) - CHAIR).max() < TOLERANCE
    shoes = find(instances, [four_1, four_2], object_class="sneakers")
    assert shoes[0] == []  # MediaPipe has a score below its threshold there, too
    assert points(shoes[1][0])[0] == pytest.approx((0.5842, 0.8003), abs=TOLERANCE)
    assert find(instances, [four_1], object_class="camera") == [[]]


def test_the_focal_length_moves_the_box_and_not_the_points(instances: Instances) -> None:
    near, far = (
        find(instances, [vision_clips.coffee()], object_class="cup", focal_x=f, focal_y=f)[0][0]
        for f in ("1", "3")
    )
    assert (points(near) == points(far)).all()
    assert far.pose.z < 2 * near.pose.z


def test_a_video_follows_its_object(instances: Instances) -> None:
    """The crop follows the points of the last frame; the detector is not needed meanwhile."""
    clip = list(vision_clips.moving(vision_clips.coffee(), 20))
    followed = find(instances, clip, Mode.VIDEO, object_class="cup", max_objects="1")
    alone = find(instances, clip, Mode.IMAGE, object_class="cup", max_objects="1")
    assert all(len(found) == 1 for found in followed)
    for ours, theirs in zip(followed, alone, strict=True):
        if theirs:
            assert np.abs(points(ours[0])[0] - points(theirs[0])[0]).max() < 0.06
    gone = find(
        instances, [clip[0], np.zeros_like(clip[0]), clip[0]], Mode.VIDEO, object_class="cup"
    )
    assert [len(found) for found in gone] == [1, 0, 1]


def test_bundles_that_are_refused(instances: Instances, folder: Path, tmp_path: Path) -> None:
    members = read_bundle(folder / BUNDLE)
    detector = members["object_detector.tflite"]
    faces = (folder / "blaze_face_short_range.tflite").read_bytes()
    for changed in (
        {name: data for name, data in members.items() if name != "chair.tflite"},
        {**members, "sneakers.tflite": detector},
        {**members, "object_detector.tflite": faces},
        {**members, "sneakers.tflite": b"no model"},
    ):
        path = tmp_path / "bundle.task"
        write_bundle(path, changed)
        with pytest.raises(InvalidModelError):
            instances.try_model(OBJECT_DETECTION_3D, path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    with pytest.raises(InvalidModelError):  # what it unpacks to would not count as memory
        instances.try_model(OBJECT_DETECTION_3D, path)
    instances.try_model(OBJECT_DETECTION_3D, folder / BUNDLE)
    instances.shut_down()
    assert not instances._used_mb
