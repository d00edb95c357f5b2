"""Boxes in 3D of four classes of objects, with the models of MediaPipe Objectron.

MediaPipe ended Objectron in 2023, and its Tasks have nothing in its place; its models are used here
as its graph did: an SSD finds the object in the picture, the model of the class finds the nine
points of its box in a crop, and `box_lift` finds the box. While a video goes on, an object's crop
follows its own points. Source: mediapipe/modules/objectron/objectron_cpu.pbtxt and
box_landmark_cpu.pbtxt; unlike there, the crop is never turned.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from ml import mediapipe_pb2 as pb
from shared.errors import UnknownOptionError
from vision_svc.backends import results
from vision_svc.backends.box_lift import POINTS, LiftedBox, lift
from vision_svc.backends.byte_track import overlaps
from vision_svc.backends.objects import detector_of_model
from vision_svc.detector import Mode

if TYPE_CHECKING:
    from vision_svc.backends.box_lift import Array
    from vision_svc.backends.byte_track import Box
    from vision_svc.backends.mediapipe_tasks import TaskDetector
    from vision_svc.frames.types import Rgb
    from vision_svc.options import Options

# The classes, each with its labels of Open Images. The bundle has a model of each class.
CLASS_LABELS = {
    "sneakers": ("Footwear",),
    "chair": ("Chair",),
    "cup": ("Coffee cup", "Mug"),
    "camera": ("Camera",),
}
_DETECTOR_MEMBER = "object_detector.tflite"
# The crop is so much larger than the object.
_CROP_SCALE = 1.5
# A detection that overlaps an object of the last frame by more is that object.
_SAME_OBJECT = 0.2
# Of two objects whose boxes overlap by more, the better one is kept.
_DOUBLED_OBJECT = 0.5


@dataclass(frozen=True)
class FoundBox:
    """An object: its nine points from 0 to 1 over the picture, their score, and the box."""

    points: Array
    score: float
    lifted: LiftedBox

    @property
    def box(self) -> Box:
        """Around the points in the picture: left, top, width and height."""
        left, top = self.points.min(0)
        width, height = np.ptp(self.points, axis=0)
        return float(left), float(top), float(width), float(height)


class BoxLandmarks:
    """The model of one class.

    Args:
        model: the bytes of a .tflite file: of a square RGB picture in 0 to 1, it finds nine points
            in pixels of that picture, and a score.
    """

    def __init__(self, model: bytes) -> None:
        self._interpreter = Interpreter(model_content=model, num_threads=1)
        self._interpreter.allocate_tensors()
        (self._input,) = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        by_size = {int(np.prod(detail["shape"])): detail["index"] for detail in outputs}
        if set(by_size) != {2 * POINTS, 1}:
            raise ValueError(f"a model with outputs of {sorted(by_size)} numbers finds no boxes")
        self._points, self._score = by_size[2 * POINTS], by_size[1]
        self._side = int(self._input["shape"][1])

    def find(self, image: Rgb, box: Box) -> tuple[Array, float]:
        """The points in a square around a box, from 0 to 1 over the picture, and their score."""
        height, width = image.shape[:2]
        left, top, across, down = box
        side = max(1.0, _CROP_SCALE * max(across * width, down * height))
        scale = self._side / side
        x, y = (left + across / 2) * width - side / 2, (top + down / 2) * height - side / 2
        crop = cv2.warpAffine(
            image,
            np.array([[scale, 0, -x * scale], [0, scale, -y * scale]]),
            (self._side, self._side),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        self._interpreter.set_tensor(self._input["index"], crop[None] * np.float32(1 / 255))
        self._interpreter.invoke()
        score = float(self._interpreter.get_tensor(self._score).ravel()[0])
        found = self._interpreter.get_tensor(self._points).reshape(POINTS, 2).astype(np.float64)
        return (found / scale + (x, y)) / (width, height), score


class Objectron:
    """Finds the objects of one class in a video.

    Args:
        detector: finds where the class is in a picture.
        landmarks: the class's model.
        options: the task's.
        follow: whether the crops of a picture follow from the one before.
    """

    def __init__(
        self, detector: TaskDetector, landmarks: BoxLandmarks, options: Options, *, follow: bool
    ) -> None:
        self._detector = detector
        self._landmarks = landmarks
        self._class = str(options["object_class"])
        self._max_objects = int(options["max_objects"])
        self._min_score = float(options["min_presence_confidence"])
        self._focal = float(options["focal_x"]), float(options["focal_y"])
        self._follow = follow
        self._last: list[Box] = []

    def detect(self, image: Rgb, time_ms: int) -> pb.ObjectDetection3DResponse:
        boxes = list(self._last)
        if len(boxes) < self._max_objects:
            boxes += self._detect(image, time_ms)
        found: list[FoundBox] = []
        for box in boxes[: self._max_objects]:
            points, score = self._landmarks.find(image, box)
            if score >= self._min_score and np.isfinite(points).all():
                found.append(FoundBox(points, score, lift(points, self._focal)))
        found = _without_doubles(found)
        if self._follow:
            self._last = [each.box for each in found]
        return results.boxes_3d(found, self._class)

    def close(self) -> None:
        self._detector.close()

    def _detect(self, image: Rgb, time_ms: int) -> list[Box]:
        """Where the class is in a picture, besides the objects of the last one."""
        response = self._detector.detect(image, time_ms)
        assert isinstance(response, pb.ObjectDetectionResponse)
        boxes = [(o.bbox.x, o.bbox.y, o.bbox.width, o.bbox.height) for o in response.objects]
        new = overlaps(boxes, self._last).max(1, initial=0) <= _SAME_OBJECT
        return [box for box, is_new in zip(boxes, new.tolist(), strict=True) if is_new]


def objectron(path: Path, options: Options, mode: Mode) -> Objectron:
    """Boxes in 3D of one class, from a bundle of the detector and a model for each class.

    Raises:
        ValueError: the file is no such bundle.
    """
    chosen = str(options["object_class"])
    with zipfile.ZipFile(path) as bundle:
        stored = {m.filename for m in bundle.infolist() if m.compress_type == zipfile.ZIP_STORED}
        needed = {_DETECTOR_MEMBER, *(f"{name}.tflite" for name in CLASS_LABELS)}
        if missing := needed - stored:
            raise ValueError(f"{path.name} does not store {', '.join(sorted(missing))}")
        detector, landmarks = bundle.read(_DETECTOR_MEMBER), bundle.read(f"{chosen}.tflite")
    found = BoxLandmarks(landmarks)
    try:
        task = detector_of_model(
            detector,
            mode,
            max_objects=int(options["max_objects"]),
            min_score=float(options["min_detection_confidence"]),
            allow=CLASS_LABELS[chosen],
        )
    except UnknownOptionError as error:
        raise ValueError(f"the detector in {path.name} does not find {chosen}") from error
    return Objectron(task, found, options, follow=mode is Mode.VIDEO)


def _without_doubles(found: list[FoundBox]) -> list[FoundBox]:
    kept: list[FoundBox] = []
    for each in sorted(found, key=lambda one: one.score, reverse=True):
        if not (overlaps([each.box], [one.box for one in kept]) > _DOUBLED_OBJECT).any():
            kept.append(each)
    return kept
