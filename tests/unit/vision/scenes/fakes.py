"""Detectors that find what the test has marked in a frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ml import mediapipe_pb2 as pb
from vision_svc.assets import Assets
from vision_svc.detector import Asset, Mode, VisionTask
from vision_svc.instances import Instances
from vision_svc.options import Options
from vision_svc.scenes.subjects import SubjectTasks
from vision_svc.tasks import FACE_DETECTION, OBJECT_DETECTOR


class MarkedFaces:
    """Detects what the test has drawn: in a frame's first row, a pixel over each subject's ends."""

    def __init__(self, noise: float) -> None:
        self._random = np.random.default_rng(5)
        self._noise = noise

    def detect(self, image: np.ndarray, time_ms: int) -> pb.FaceDetectionResponse:
        width = image.shape[1]
        response = pb.FaceDetectionResponse()
        marks = np.flatnonzero(image[0, :, 0] > 240)  # jpeg and webp change them a little
        for left, right in marks[: len(marks) // 2 * 2].reshape(-1, 2):
            begin, end = (np.array((left, right)) + self._random.normal(0, self._noise, 2)) / width
            response.faces.add(x=begin, width=end - begin, y=0.3, height=0.2, confidence=0.9)
        return response

    def close(self) -> None:
        pass


class MarkedObjects:
    """Detects a dog of this score in a frame whose last row has a green pixel of this value."""

    def detect(self, image: np.ndarray, time_ms: int) -> pb.ObjectDetectionResponse:
        response = pb.ObjectDetectionResponse()
        if (score := float(image[-1, :, 1].max()) / 255) > 0.95:
            box = pb.BoundingBox(x=0.4, y=0.5, width=0.1, height=0.1)
            response.objects.add(label="dog", confidence=score, bbox=box)
        return response

    def close(self) -> None:
        pass


def marked_subjects(folder: Path, noise: float = 0.0) -> tuple[Instances, SubjectTasks]:
    """Tasks on these detectors; `folder` gets their model file."""
    (folder / "model").write_bytes(b"1")

    def task(name: str, like: VisionTask, detector: MarkedFaces | MarkedObjects) -> VisionTask:
        def open_detector(path: Path, options: Options, mode: Mode) -> MarkedFaces | MarkedObjects:
            return detector

        assets = {"": Asset("model", 1)}
        return VisionTask(
            name, open_detector, assets, like.options, like.response, keeps_state=False
        )

    tasks = SubjectTasks(
        task("faces", FACE_DETECTION, MarkedFaces(noise)),
        task("objects", OBJECT_DETECTOR, MarkedObjects()),
    )
    return Instances(Assets(folder), 100, 4, lambda: None), tasks
