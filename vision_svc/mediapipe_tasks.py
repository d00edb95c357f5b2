"""The tasks that run on MediaPipe's Tasks API.

MediaPipe 1.2.2 reports to a Google host whenever a task closes and has no switch for it; without a
network that fails quietly and costs nothing. Give the service no route out if that must not be.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision

from vision_svc import results
from vision_svc.detector import Mode, Response
from vision_svc.face_score import FaceScorer

if TYPE_CHECKING:
    from shared.frames.types import Rgb
    from vision_svc.options import Options

log = logging.getLogger(__name__)

_RUNNING_MODES = {Mode.IMAGE: vision.RunningMode.IMAGE, Mode.VIDEO: vision.RunningMode.VIDEO}


def close_task(task: Any) -> None:
    """Closes a Tasks object even when its graph has failed.

    A failed graph's `close` raises and leaves the handle set; `__del__` then closes once more and
    can wait forever. So the handle is taken away, and what remains is closed part by part.
    """
    try:
        task.close()
    except Exception as error:  # noqa: BLE001
        log.warning("a failed graph was closed", extra={"error": str(error)[:200]})
    finally:
        task._handle = None  # noqa: SLF001
        for part in (task._dispatcher, task._lib):  # noqa: SLF001
            with contextlib.suppress(Exception):
                part.close()


class TaskDetector:
    """A Tasks object: pixels in, the answer as a message out.

    Args:
        task: the object, made for `mode`.
        mode: whether pictures follow each other.
        method: what the task's call is named for single pictures.
        respond: makes the message of the task's result and the picture.
    """

    def __init__(
        self,
        task: Any,
        mode: Mode,
        method: str,
        respond: Callable[[Any, Rgb], Response],
    ) -> None:
        self._task = task
        self._video = mode is Mode.VIDEO
        self._run = getattr(task, f"{method}_for_video" if self._video else method)
        self._respond = respond

    def detect(self, image: Rgb, time_ms: int) -> Response:
        picture = mp.Image(mp.ImageFormat.SRGB, np.ascontiguousarray(image))
        result = self._run(picture, time_ms) if self._video else self._run(picture)
        return self._respond(result, image)

    def close(self) -> None:
        close_task(self._task)


def _common(path: Path, mode: Mode) -> dict[str, Any]:
    base = BaseOptions(model_asset_path=str(path), delegate=BaseOptions.Delegate.CPU)
    return {"base_options": base, "running_mode": _RUNNING_MODES[mode]}


def face_detector(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """BlazeFace: boxes and six key points."""
    task = vision.FaceDetector.create_from_options(
        vision.FaceDetectorOptions(
            **_common(path, mode), min_detection_confidence=options["min_detection_confidence"]
        )
    )
    most = int(options["max_faces"])
    return TaskDetector(
        task, mode, "detect", lambda result, image: results.face_detections(result, image, most)
    )


def gesture_recognizer(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """Hands with their gestures."""
    task = vision.GestureRecognizer.create_from_options(
        vision.GestureRecognizerOptions(
            **_common(path, mode),
            num_hands=options["max_hands"],
            min_hand_detection_confidence=options["min_detection_confidence"],
            min_hand_presence_confidence=options["min_presence_confidence"],
            min_tracking_confidence=options["min_tracking_confidence"],
        )
    )
    return TaskDetector(task, mode, "recognize", lambda result, _: results.hands(result))


def pose_landmarker(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """BlazePose: 33 points in the picture and in metres."""
    task = vision.PoseLandmarker.create_from_options(
        vision.PoseLandmarkerOptions(
            **_common(path, mode),
            num_poses=options["max_poses"],
            min_pose_detection_confidence=options["min_detection_confidence"],
            min_pose_presence_confidence=options["min_presence_confidence"],
            min_tracking_confidence=options["min_tracking_confidence"],
        )
    )
    return TaskDetector(task, mode, "detect", lambda result, _: results.poses(result))


def _face_landmarker(
    path: Path,
    options: Options,
    mode: Mode,
    respond: Callable[[list[Any], list[float]], Response],
) -> TaskDetector:
    scorer = FaceScorer(path)
    task = vision.FaceLandmarker.create_from_options(
        vision.FaceLandmarkerOptions(
            **_common(path, mode),
            num_faces=options["max_faces"],
            min_face_detection_confidence=options["min_detection_confidence"],
            min_face_presence_confidence=options["min_presence_confidence"],
            min_tracking_confidence=options["min_tracking_confidence"],
        )
    )

    def scored(result: Any, image: Rgb) -> Response:
        faces = result.face_landmarks
        return respond(faces, scorer.scores(image, faces))

    return TaskDetector(task, mode, "detect", scored)


def face_mesh(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """The mesh of 478 points."""
    return _face_landmarker(path, options, mode, results.face_meshes)


def iris_tracker(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """Irises and eyes, taken from the mesh, which holds the iris model's points."""
    return _face_landmarker(path, options, mode, results.irises)


def holistic_landmarker(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """Face, pose and both hands of one person."""
    scorer = FaceScorer(path)
    task = vision.HolisticLandmarker.create_from_options(
        vision.HolisticLandmarkerOptions(
            **_common(path, mode),
            min_face_detection_confidence=options["min_detection_confidence"],
            min_face_landmarks_confidence=options["min_presence_confidence"],
            min_pose_detection_confidence=options["min_detection_confidence"],
            min_pose_landmarks_confidence=options["min_presence_confidence"],
            min_hand_landmarks_confidence=options["min_presence_confidence"],
        )
    )

    def scored(result: Any, image: Rgb) -> Response:
        faces = [result.face_landmarks] if result.face_landmarks else []
        return results.holistic(result, scorer.scores(image, faces))

    return TaskDetector(task, mode, "detect", scored)
