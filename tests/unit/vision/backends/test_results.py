"""The landmark indices are those of MediaPipe."""

from __future__ import annotations

import itertools

from mediapipe.tasks.python.vision import FaceLandmarksConnections

from vision_svc.backends import results


def points(connections: list[object]) -> set[int]:
    return {index for c in connections for index in (c.start, c.end)}  # type: ignore[attr-defined]


def test_eyes_and_irises() -> None:
    assert set(results.LEFT_EYE) == points(FaceLandmarksConnections.FACE_LANDMARKS_LEFT_EYE)
    assert set(results.RIGHT_EYE) == points(FaceLandmarksConnections.FACE_LANDMARKS_RIGHT_EYE)
    assert set(results.LEFT_IRIS[1:]) == points(FaceLandmarksConnections.FACE_LANDMARKS_LEFT_IRIS)
    assert set(results.RIGHT_IRIS[1:]) == points(FaceLandmarksConnections.FACE_LANDMARKS_RIGHT_IRIS)


def test_the_ring_around_an_eye_follows_its_connections() -> None:
    for ring, connections in (
        (results.LEFT_EYE, FaceLandmarksConnections.FACE_LANDMARKS_LEFT_EYE),
        (results.RIGHT_EYE, FaceLandmarksConnections.FACE_LANDMARKS_RIGHT_EYE),
    ):
        known = {frozenset((c.start, c.end)) for c in connections}
        steps = {frozenset(step) for step in itertools.pairwise((*ring, ring[0]))}
        assert steps == known


def test_contours_are_pairs() -> None:
    pairs = [(c.start, c.end) for c in FaceLandmarksConnections.FACE_LANDMARKS_CONTOURS]
    assert tuple(itertools.chain(*pairs)) == results.FACE_CONTOURS
