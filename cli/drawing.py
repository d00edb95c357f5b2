"""Draws vision_svc's results on their frames.

Each function draws on an RGB picture in place and returns whether there was anything to draw.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from vision_svc.frames.types import Rgb

Colour = tuple[int, int, int]
GREEN, RED, BLUE = (60, 220, 90), (240, 70, 60), (70, 140, 255)
YELLOW, WHITE = (255, 220, 60), (255, 255, 255)

# Lines between points. Source: MediaPipe's HAND_CONNECTIONS and POSE_CONNECTIONS.
_FINGERS = (
    (0, 1, 2, 3, 4),
    (0, 5, 6, 7, 8),
    (9, 10, 11, 12),
    (13, 14, 15, 16),
    (0, 17, 18, 19, 20),
)
HAND_LINES = [
    *(step for finger in _FINGERS for step in itertools.pairwise(finger)),
    *((5, 9), (9, 13), (13, 17)),
]
_BODY = (
    *((8, 6, 5, 4, 0, 1, 2, 3, 7), (10, 9), (11, 12, 24, 23, 11)),
    *((11, 13, 15, 17, 19, 15, 21), (12, 14, 16, 18, 20, 16, 22)),
    *((23, 25, 27, 29, 31, 27), (24, 26, 28, 30, 32, 28)),
)
POSE_LINES = [step for chain in _BODY for step in itertools.pairwise(chain)]
# Edges of a box in 3D, and its right, top and front faces, by the numbers of its points.
BOX_LINES = (
    *((1, 2), (3, 4), (5, 6), (7, 8)),
    *((1, 3), (2, 4), (5, 7), (6, 8)),
    *((1, 5), (2, 6), (3, 7), (4, 8)),
)
BOX_FACES = ((5, 6, 7, 8), (3, 4, 7, 8), (2, 4, 6, 8))
TRACK_COLOURS = (GREEN, RED, BLUE, YELLOW)
# Points that the model considers hidden are not drawn.
_SEEN = 0.5


def _at(image: Rgb, point: Any) -> tuple[int, int]:
    height, width = image.shape[:2]
    return round(point.x * width), round(point.y * height)


def _dots(image: Rgb, points: Iterable[Any], colour: Colour, radius: int = 2) -> None:
    for point in points:
        cv2.circle(image, _at(image, point), radius, colour, -1, cv2.LINE_AA)


def _lines(
    image: Rgb, points: Sequence[Any], pairs: Iterable[tuple[int, int]], colour: Colour
) -> None:
    for start, end in pairs:
        a, b = _at(image, points[start]), _at(image, points[end])
        cv2.line(image, a, b, colour, 2, cv2.LINE_AA)


def _label(image: Rgb, text: str, place: tuple[int, int]) -> None:
    x, y = max(2, place[0]), max(16, place[1])
    for colour, thickness in (((0, 0, 0), 3), (WHITE, 1)):
        cv2.putText(
            image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA
        )


def faces(image: Rgb, answer: Any) -> bool:
    """Boxes and key points."""
    height, width = image.shape[:2]
    for face in answer.faces:
        corner = round(face.x * width), round(face.y * height)
        size = round(face.width * width), round(face.height * height)
        far = corner[0] + size[0], corner[1] + size[1]
        cv2.rectangle(image, corner, far, GREEN, 2, cv2.LINE_AA)
        _dots(image, face.keypoints, RED, 3)
        _label(image, f"face {face.confidence:.2f}", (corner[0], corner[1] - 6))
    return bool(answer.faces)


def _mesh(image: Rgb, face: Any) -> None:
    _dots(image, face.landmarks[:468], GREEN, 1)
    pairs = zip(face.contours[::2], face.contours[1::2], strict=True)
    _lines(image, face.landmarks, pairs, BLUE)
    _dots(image, face.landmarks[468:], YELLOW)
    top = min(face.landmarks, key=lambda point: point.y)
    _label(image, f"mesh {face.confidence:.2f}", _at(image, top))


def meshes(image: Rgb, answer: Any) -> bool:
    """Points, outlines and irises of each face."""
    for face in answer.faces:
        _mesh(image, face)
    return bool(answer.faces)


def irises(image: Rgb, answer: Any) -> bool:
    """The ring around each eye and the iris in it."""
    for eye in answer.eyes:
        ring = np.array([_at(image, point) for point in eye.eye_landmarks])
        cv2.polylines(image, [ring], True, GREEN, 1, cv2.LINE_AA)
        _dots(image, eye.iris_landmarks, YELLOW)
        _label(image, f"{eye.eye} {eye.confidence:.2f}", _at(image, eye.eye_landmarks[0]))
    return bool(answer.eyes)


def _hand(image: Rgb, hand: Any) -> None:
    colour = BLUE if hand.handedness == "Left" else RED
    _lines(image, hand.landmarks, HAND_LINES, colour)
    _dots(image, hand.landmarks, YELLOW, 3)
    gestures = " ".join(gesture.name for gesture in hand.gestures)
    wrist = _at(image, hand.landmarks[0])
    _label(image, f"{hand.handedness} {hand.confidence:.2f} {gestures}", wrist)


def hands(image: Rgb, answer: Any) -> bool:
    """Fingers, side and gesture of each hand."""
    for hand in answer.hands:
        _hand(image, hand)
    return bool(answer.hands)


def _pose(image: Rgb, pose: Any) -> None:
    points = pose.landmarks
    seen = [point.visibility >= _SEEN for point in points]
    _lines(image, points, (line for line in POSE_LINES if seen[line[0]] and seen[line[1]]), GREEN)
    _dots(image, itertools.compress(points, seen), RED, 3)
    _label(image, f"pose {pose.confidence:.2f}", _at(image, points[0]))


def poses(image: Rgb, answer: Any) -> bool:
    """The skeleton of each person."""
    for pose in answer.poses:
        _pose(image, pose)
    return bool(answer.poses)


def holistic(image: Rgb, answer: Any) -> bool:
    """Skeleton, face and hands of one person."""
    if answer.HasField("pose"):
        _pose(image, answer.pose)
    if answer.HasField("face"):
        _mesh(image, answer.face)
    for hand in answer.hands:
        _hand(image, hand)
    return bool(answer.HasField("pose"))


def _boxed(image: Rgb, box: Any, colour: Colour, text: str) -> None:
    height, width = image.shape[:2]
    corner = round(box.x * width), round(box.y * height)
    far = round((box.x + box.width) * width), round((box.y + box.height) * height)
    cv2.rectangle(image, corner, far, colour, 2, cv2.LINE_AA)
    _label(image, text, (corner[0], corner[1] - 6))


def objects(image: Rgb, answer: Any) -> bool:
    """Boxes with their labels."""
    for each in answer.objects:
        _boxed(image, each.bbox, GREEN, f"{each.label} {each.confidence:.2f}")
    return bool(answer.objects)


def tracks(image: Rgb, answer: Any) -> bool:
    """Boxes with their ids, and the way that their centres took."""
    height, width = image.shape[:2]
    for each in answer.objects:
        colour = TRACK_COLOURS[each.track_id % len(TRACK_COLOURS)]
        _boxed(image, each.bbox, colour, f"{each.track_id} {each.label} {each.confidence:.2f}")
        way = [
            (round((b.x + b.width / 2) * width), round((b.y + b.height / 2) * height))
            for b in each.trajectory
        ]
        cv2.polylines(image, [np.array(way)], False, colour, 2, cv2.LINE_AA)
    return bool(answer.objects)


def boxes_3d(image: Rgb, answer: Any) -> bool:
    """The edges of each box, its axes (x red, y green, z blue), and its class."""
    for each in answer.objects:
        points = each.keypoints_2d
        _lines(image, points, BOX_LINES, YELLOW)
        for faces, colour in zip(BOX_FACES, (RED, GREEN, BLUE), strict=True):
            middle = np.mean([_at(image, points[corner]) for corner in faces], axis=0)
            end = (round(float(middle[0])), round(float(middle[1])))
            cv2.arrowedLine(image, _at(image, points[0]), end, colour, 2, cv2.LINE_AA)
        top = min(points, key=lambda point: point.y)
        _label(image, f"{each.label} {each.confidence:.2f}", _at(image, top))
    return bool(answer.objects)


def _tinted(colour: Colour) -> Callable[[Rgb, Any], bool]:
    def draw(image: Rgb, answer: Any) -> bool:
        mask = np.frombuffer(answer.mask, np.uint8).reshape(answer.height, answer.width, 1)
        part = mask.astype(np.float32) / 255 * 0.6
        image[:] = (image * (1 - part) + np.array(colour, np.float32) * part).astype(np.uint8)
        _label(image, f"{mask.mean() / 255:.0%} of the pixels", (8, 20))
        return bool(mask.any())

    return draw


def templates(image: Rgb, answer: Any) -> bool:
    """The box of each match."""
    height, width = image.shape[:2]
    for match in answer.matches:
        corner = round(match.x * width), round(match.y * height)
        far = corner[0] + round(match.width * width), corner[1] + round(match.height * height)
        cv2.rectangle(image, corner, far, YELLOW, 2, cv2.LINE_AA)
        _label(image, f"template {match.confidence:.2f}", (corner[0], corner[1] - 6))
    return bool(answer.matches)


def crops(image: Rgb, answer: Any) -> bool:
    """The part that auto flip keeps; the rest is darker."""
    x, y, width, height = (
        int(answer.metadata[f"crop_{name}"]) for name in ("x", "y", "width", "height")
    )
    kept = image[y : y + height, x : x + width].copy()
    image //= 3
    image[y : y + height, x : x + width] = kept
    cv2.rectangle(image, (x, y), (x + width - 1, y + height - 1), WHITE, 2)
    _label(image, f"shot {answer.metadata['shot']}", (x + 8, y + 24))
    return bool(answer.frame_data)


DRAWINGS: dict[str, Callable[[Rgb, Any], bool]] = {
    "faces": faces,
    "mesh": meshes,
    "iris": irises,
    "hands": hands,
    "pose": poses,
    "holistic": holistic,
    "objects": objects,
    "tracks": tracks,
    "boxes3d": boxes_3d,
    "selfie": _tinted(GREEN),
    "hair": _tinted(RED),
    "templates": templates,
    "auto-flip": crops,
}
