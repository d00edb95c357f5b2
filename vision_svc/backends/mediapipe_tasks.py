"""The tasks on MediaPipe's Tasks API. `process_setup` keeps it from sending usage reports."""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mediapipe.tasks.python import BaseOptions, vision
from mediapipe.tasks.python.components.containers.detections_c import MpDetectionResultC
from mediapipe.tasks.python.vision.face_landmarker import MpFaceLandmarkerResultC
from mediapipe.tasks.python.vision.gesture_recognizer_result_c import MpGestureRecognizerResultC
from mediapipe.tasks.python.vision.holistic_landmarker import MpHolisticLandmarkerResultC
from mediapipe.tasks.python.vision.pose_landmarker import MpPoseLandmarkerResultC

from vision_svc.backends import results
from vision_svc.backends.face_score import FaceScorer
from vision_svc.backends.landmarks import view
from vision_svc.backends.mediapipe_c import TaskCall
from vision_svc.detector import Mode, Response

if TYPE_CHECKING:
    from vision_svc.backends.landmarks import Points
    from vision_svc.frames.types import Rgb
    from vision_svc.options import Options

log = logging.getLogger(__name__)

# Hands are tracked by their overlap from frame to frame, and MediaPipe aborts the whole process if
# the least overlap is 0 as a 32-bit float (hand_association_calculator.cc).
_MIN_OVERLAP = 1e-6

_RUNNING_MODES = {Mode.IMAGE: vision.RunningMode.IMAGE, Mode.VIDEO: vision.RunningMode.VIDEO}


def close_task(task: Any) -> None:
    """Closes a Tasks object, even if its graph has failed.

    The `close` of a failed graph raises and keeps the handle; `__del__` then closes it once more
    and may wait forever. So the handle is removed, and the other parts are closed one by one.
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
    """A detector on a Tasks object.

    Args:
        task: the object, created for `mode`.
        mode: whether the pictures follow each other.
        result_type: the C structure of its results.
        respond: makes the response from such a result and the picture.
        verb: the first word of the names of the task's calls.
    """

    def __init__(
        self,
        task: Any,
        mode: Mode,
        result_type: type[ctypes.Structure],
        respond: Callable[[Any, Rgb], Response],
        *,
        verb: str = "Detect",
    ) -> None:
        self._task = task
        self._video = mode is Mode.VIDEO
        self._call = TaskCall(task, verb + ("ForVideo" if self._video else "Image"), result_type)
        self._respond = respond

    def detect(self, image: Rgb, time_ms: int) -> Response:
        clock = (time_ms,) if self._video else ()
        return self._call.run(image, lambda result: self._respond(result, image), *clock)

    def close(self) -> None:
        close_task(self._task)


def common_options(model: Path | bytes, mode: Mode) -> dict[str, Any]:
    """What the options of all tasks have: the model, as a file or its content, and the mode."""
    source: dict[str, Any] = (
        {"model_asset_buffer": model}
        if isinstance(model, bytes)
        else {"model_asset_path": str(model)}
    )
    base = BaseOptions(**source, delegate=BaseOptions.Delegate.CPU)
    return {"base_options": base, "running_mode": _RUNNING_MODES[mode]}


def face_detector(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """BlazeFace: boxes and six key points."""
    task = vision.FaceDetector.create_from_options(
        vision.FaceDetectorOptions(
            **common_options(path, mode),
            min_detection_confidence=options["min_detection_confidence"],
        )
    )
    max_faces = int(options["max_faces"])
    return TaskDetector(
        task,
        mode,
        MpDetectionResultC,
        lambda result, image: results.face_detections(result, image, max_faces),
    )


def gesture_recognizer(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """Hands and their gestures."""
    task = vision.GestureRecognizer.create_from_options(
        vision.GestureRecognizerOptions(
            **common_options(path, mode),
            num_hands=options["max_hands"],
            min_hand_detection_confidence=options["min_detection_confidence"],
            min_hand_presence_confidence=options["min_presence_confidence"],
            min_tracking_confidence=max(_MIN_OVERLAP, float(options["min_tracking_confidence"])),
        )
    )
    return TaskDetector(
        task,
        mode,
        MpGestureRecognizerResultC,
        lambda result, _: results.hands(result),
        verb="Recognize",
    )


def pose_landmarker(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """BlazePose: 33 points, in the picture and in metres."""
    task = vision.PoseLandmarker.create_from_options(
        vision.PoseLandmarkerOptions(
            **common_options(path, mode),
            num_poses=options["max_poses"],
            min_pose_detection_confidence=options["min_detection_confidence"],
            min_pose_presence_confidence=options["min_presence_confidence"],
            min_tracking_confidence=options["min_tracking_confidence"],
        )
    )
    return TaskDetector(
        task, mode, MpPoseLandmarkerResultC, lambda result, _: results.poses(result)
    )


def _face_landmarker(
    path: Path,
    options: Options,
    mode: Mode,
    respond: Callable[[Sequence[Points], Sequence[float]], Response],
) -> TaskDetector:
    scorer = FaceScorer(path)
    task = vision.FaceLandmarker.create_from_options(
        vision.FaceLandmarkerOptions(
            **common_options(path, mode),
            num_faces=options["max_faces"],
            min_face_detection_confidence=options["min_detection_confidence"],
            min_face_presence_confidence=options["min_presence_confidence"],
            min_tracking_confidence=options["min_tracking_confidence"],
        )
    )

    def scored(result: Any, image: Rgb) -> Response:
        faces = [view(result.face_landmarks[i]) for i in range(result.face_landmarks_count)]
        return respond(faces, scorer.scores(image, faces))

    return TaskDetector(task, mode, MpFaceLandmarkerResultC, scored)


def face_mesh(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """The mesh of 478 points."""
    return _face_landmarker(path, options, mode, results.face_meshes)


def iris_tracker(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """Irises and eyes: the points of the mesh that the iris model computes."""
    return _face_landmarker(path, options, mode, results.irises)


def holistic_landmarker(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """Face, pose and both hands of one person."""
    scorer = FaceScorer(path)
    task = vision.HolisticLandmarker.create_from_options(
        vision.HolisticLandmarkerOptions(
            **common_options(path, mode),
            min_face_detection_confidence=options["min_detection_confidence"],
            min_face_landmarks_confidence=options["min_presence_confidence"],
            min_pose_detection_confidence=options["min_detection_confidence"],
            min_pose_landmarks_confidence=options["min_presence_confidence"],
            min_hand_landmarks_confidence=options["min_presence_confidence"],
        )
    )

    def scored(result: Any, image: Rgb) -> Response:
        face = view(result.face_landmarks)
        return results.holistic(result, scorer.scores(image, [face] if len(face) else []))

    return TaskDetector(task, mode, MpHolisticLandmarkerResultC, scored)
