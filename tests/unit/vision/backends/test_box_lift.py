"""Poses of boxes: known ones, rendered by OpenCV, and MediaPipe's own for the same points."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vision_svc.backends.box_lift import CORNERS, LiftedBox, lift

WIDTH, HEIGHT = 640, 480
# Roll, pitch and yaw in degrees.
POSES = [(0, 0, 0), (0, 30, 20), (-15, 45, 130), (80, -20, -60), (10, 60, -170), (-120, 5, 90)]


def rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    z, x, y = (
        cv2.Rodrigues(np.radians(angle) * np.array(axis, float))[0]
        for angle, axis in ((roll, (0, 0, 1)), (pitch, (1, 0, 0)), (yaw, (0, 1, 0)))
    )
    return z @ x @ y


def rendered(
    turn: np.ndarray, size: np.ndarray, centre: np.ndarray, focal: tuple[float, float]
) -> np.ndarray:
    """The nine points of a box in pixels of a picture, by OpenCV's camera: y down, z away."""
    points = np.vstack([np.zeros(3), CORNERS * size / 2]) @ turn.T + centre
    camera = np.array(
        [[focal[0] * WIDTH / 2, 0, WIDTH / 2], [0, focal[1] * HEIGHT / 2, HEIGHT / 2], [0, 0, 1]]
    )
    seen, _ = cv2.projectPoints(
        points * (1, -1, -1), np.zeros(3), np.zeros(3), camera, distCoeffs=None
    )
    return seen.reshape(9, 2)


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.linalg.norm(cv2.Rodrigues(a.T @ b)[0])))


def lifted(pixels: np.ndarray, focal: tuple[float, float]) -> LiftedBox:
    return lift(pixels / (WIDTH, HEIGHT), focal)


@pytest.mark.parametrize("angles", POSES)
@pytest.mark.parametrize("focal", [(1.0, 1.0), (1.6, 2.1)])
def test_the_pose_of_a_rendered_box(
    angles: tuple[float, float, float], focal: tuple[float, float]
) -> None:
    turn, size, centre = rotation(*angles), np.array([0.3, 0.8, 0.5]), np.array([0.2, -0.1, -3.0])
    box = lifted(rendered(turn, size, centre, focal), focal)
    assert angle_between(box.rotation, turn) < 0.01
    assert box.scale == pytest.approx(size / 0.8, abs=1e-4)  # units of the longest edge
    assert box.points[0] == pytest.approx(centre / 0.8, abs=1e-3)
    corners = (CORNERS * size / 2) @ turn.T + centre
    assert box.points[1:] == pytest.approx(corners / 0.8, abs=1e-3)
    assert box.angles == pytest.approx(angles, abs=0.01)


@pytest.mark.parametrize("angles", POSES)
def test_whole_pixels_move_the_pose_a_little(angles: tuple[float, float, float]) -> None:
    turn, size, centre = rotation(*angles), np.array([0.6, 0.8, 0.7]), np.array([0.1, 0.1, -2.0])
    box = lifted(np.round(rendered(turn, size, centre, (1.6, 2.1))), (1.6, 2.1))
    assert angle_between(box.rotation, turn) < 3
    assert np.abs(box.scale - size / 0.8).max() < 0.05
    assert np.abs(box.points[0] - centre / 0.8).max() < 0.15


def test_a_rotation_stays_one_whatever_the_points() -> None:
    random = np.random.default_rng(1)
    for points in (np.full((9, 2), 0.5), np.zeros((9, 2)), *random.random((50, 9, 2))):
        box = lift(points, (1.0, 1.0))
        assert np.isfinite(box.points).all()
        assert box.rotation @ box.rotation.T == pytest.approx(np.eye(3), abs=1e-6)
        assert np.linalg.det(box.rotation) == pytest.approx(1)
        assert box.points[0, 2] <= 0
        assert np.isfinite(box.angles).all()


# mp.solutions.objectron of mediapipe 0.10.21, model "Cup", on the picture coffee.png of `make
# models`: the points that it found, and what it lifted them to.
SEEN = [
    *((0.48202, 0.44907), (0.61619, 0.77761), (0.60085, 0.4213), (0.71329, 0.53103)),
    *((0.6757, 0.05731), (0.30851, 0.77849), (0.33689, 0.40055), (0.26226, 0.53542)),
    (0.31297, 0.01963),
]
LIFTED = [
    *((-0.0185, 0.04472, -0.48019), (0.1224, -0.30518, -0.54818), (0.12467, 0.10532, -0.62122)),
    *((0.15634, -0.02614, -0.36463), (0.15861, 0.38435, -0.43767)),
    *((-0.19561, -0.29491, -0.52271), (-0.19334, 0.11558, -0.59574)),
    *((-0.16167, -0.01588, -0.33916), (-0.15941, 0.39462, -0.41219)),
]


def test_the_same_points_are_lifted_as_by_mediapipe() -> None:
    theirs = np.array(LIFTED)
    edges = (np.linalg.norm(theirs[corner] - theirs[1]) for corner in (5, 3, 2))
    assert lift(np.array(SEEN), (1.0, 1.0)).points == pytest.approx(theirs / max(edges), abs=2e-4)
