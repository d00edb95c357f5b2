"""The tasks of vision: their RPCs, and what they have found in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _faces(answer: Any) -> list[str]:
    return [f"face {each.confidence:.2f}{_box(each)}" for each in answer.faces]


def _meshes(answer: Any) -> list[str]:
    return [f"face {each.confidence:.2f}, {len(each.landmarks)} points" for each in answer.faces]


def _eyes(answer: Any) -> list[str]:
    return [f"{each.eye} eye {each.confidence:.2f}" for each in answer.eyes]


def _hands(answer: Any) -> list[str]:
    return [
        " ".join(
            [f"{each.handedness} hand {each.confidence:.2f}"]
            + [f"{gesture.name} {gesture.confidence:.2f}" for gesture in each.gestures]
        )
        for each in answer.hands
    ]


def _poses(answer: Any) -> list[str]:
    return [f"pose {each.confidence:.2f}" for each in answer.poses]


def _person(answer: Any) -> list[str]:
    found = [f"pose {answer.pose.confidence:.2f}"] if answer.HasField("pose") else []
    found += [f"face {answer.face.confidence:.2f}"] if answer.HasField("face") else []
    return found + _hands(answer)


def _objects(answer: Any) -> list[str]:
    return [f"{each.label} {each.confidence:.2f}{_box(each.bbox)}" for each in answer.objects]


def _tracks(answer: Any) -> list[str]:
    return [
        f"{each.track_id} {each.label} {each.confidence:.2f}{_box(each.bbox)}"
        for each in answer.objects
    ]


def _mask(answer: Any) -> list[str]:
    share = sum(answer.mask) / (255 * len(answer.mask)) if answer.mask else 0
    return [f"{share:.1%} of the pixels"] if share else []


def _matches(answer: Any) -> list[str]:
    return [f"match {each.confidence:.2f}{_box(each)}" for each in answer.matches]


def _crop(answer: Any) -> list[str]:
    keys = ("crop_x", "crop_y", "crop_width", "crop_height")
    x, y, width, height = (answer.metadata.get(key, "?") for key in keys)
    return [f"shot {answer.metadata.get('shot', '?')}, {width} x {height} at {x}, {y}"]


def _box(box: Any) -> str:
    """A box, in shares of the picture's width and height."""
    return f" at {box.x:.2f}, {box.y:.2f}, {box.width:.2f} x {box.height:.2f}"


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        stream: its RPC for videos.
        found: what an answer has, a line for each thing.
        picture: its RPC for single pictures; empty if there is none, and a picture is then a video
            of one frame.
    """

    stream: str
    found: Callable[[Any], list[str]]
    picture: str = ""


TASKS = {
    "faces": Task("StreamFaceDetection", _faces, "DetectFaces"),
    "mesh": Task("StreamFaceMesh", _meshes),
    "iris": Task("StreamIrisTracking", _eyes),
    "hands": Task("StreamHandTracking", _hands, "DetectHands"),
    "pose": Task("StreamPoseTracking", _poses, "DetectPose"),
    "holistic": Task("StreamHolisticTracking", _person),
    "objects": Task("StreamObjectDetection", _objects),
    "tracks": Task("StreamObjectTracking", _tracks),
    "boxes3d": Task("StreamObjectDetection3D", _objects),
    "selfie": Task("StreamSelfieSegmentation", _mask),
    "hair": Task("StreamHairSegmentation", _mask),
    "templates": Task("StreamTemplateMatching", _matches),
    "auto-flip": Task("StreamAutoFlip", _crop),
}
