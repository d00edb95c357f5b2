"""Arrays of points become the same messages as points added one by one."""

from __future__ import annotations

import ctypes

import numpy as np
from mediapipe.tasks.python.components.containers.landmark_c import (
    MpLandmarkC,
    MpLandmarksC,
    MpNormalizedLandmarkC,
)

from ml import mediapipe_pb2 as pb
from vision_svc.backends.landmarks import (
    POINT,
    LandmarkField,
    view,
)

# Such a layout would fail first on zeros, negative numbers and values that are not set.
ROWS = [
    (0.25, -0.5, 0.0, True, 0.75, True, 1.0),
    (0.0, 0.0, 0.0, False, 9.0, False, 9.0),
    (-1.5, 1e-30, 3.0, True, 0.0, False, 9.0),
]


def c_landmarks() -> MpLandmarksC:
    array = (MpLandmarkC * len(ROWS))(*(MpLandmarkC(*row, None) for row in ROWS))
    landmarks = MpLandmarksC(array, len(ROWS))
    landmarks.keep = array
    return landmarks


def expected(*, optional: bool) -> list[pb.Landmark]:
    landmarks = []
    for x, y, z, has_visibility, visibility, has_presence, presence in ROWS:
        landmark = pb.Landmark(x=x, y=y, z=z)
        if optional and has_visibility:
            landmark.visibility = visibility
        if optional and has_presence:
            landmark.presence = presence
        landmarks.append(landmark)
    return landmarks


def test_all_kinds_of_landmarks_have_the_same_layout() -> None:
    for name in POINT.names or ():
        assert getattr(MpLandmarkC, name).offset == getattr(MpNormalizedLandmarkC, name).offset
    assert POINT.itemsize == ctypes.sizeof(MpNormalizedLandmarkC)


def test_a_view_has_every_value() -> None:
    landmarks = c_landmarks()
    points = view(landmarks)
    for name, column in zip(
        ("x", "y", "z", "has_visibility", "visibility", "has_presence", "presence"),
        zip(*ROWS, strict=True),
        strict=True,
    ):
        assert points[name].tolist() == np.asarray(column, points[name].dtype).tolist()


def test_no_points() -> None:
    points = view(MpLandmarksC())
    assert len(points) == 0
    message = pb.FaceMesh()
    LandmarkField(pb.FaceMesh, "landmarks").add(message, points)
    assert message == pb.FaceMesh()


def test_fields_of_one_and_of_two_bytes() -> None:
    landmarks = c_landmarks()
    hand = pb.HandDetection(handedness="Left")
    LandmarkField(pb.HandDetection, "landmarks").add(hand, view(landmarks))
    LandmarkField(pb.HandDetection, "world_landmarks").add(hand, view(landmarks)[:2])
    whole = expected(optional=True)
    assert hand == pb.HandDetection(handedness="Left", landmarks=whole, world_landmarks=whole[:2])


def test_without_visibility_and_presence() -> None:
    landmarks = c_landmarks()
    mesh = pb.FaceMesh()
    LandmarkField(pb.FaceMesh, "landmarks", optional=False).add(mesh, view(landmarks))
    assert list(mesh.landmarks) == expected(optional=False)
