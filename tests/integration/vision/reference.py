"""MediaPipe run directly in this process, and the comparison of its results with answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision

from tests.support.vision_frames import STEP_MS
from tools import vision_clips
from vision_svc.backends.mediapipe_tasks import close_task
from vision_svc.backends.objectron import Objectron
from vision_svc.detector import Mode
from vision_svc.options import parse_options
from vision_svc.tasks import OBJECT_DETECTION_3D

# What the service promises.
LANDMARK_TOLERANCE = 0.03
BOX_IOU = 0.9
MASK_IOU = 0.95


@dataclass(frozen=True)
class Reference:
    """One task of MediaPipe, with the options that the service has by default.

    Where a stream needs other options to find anything, `options_sent` has them for its frames.
    """

    rpc: str
    asset: str
    task: type
    options: type
    method: str
    compare: Callable[[Any, Any, tuple[int, int]], None]
    settings: dict[str, Any] = field(default_factory=dict)
    options_sent: dict[str, str] = field(default_factory=dict)

    def run(self, folder: Path, images: Sequence[np.ndarray], **settings: Any) -> Iterator[Any]:
        """MediaPipe's result for each picture of a video."""
        options = self.options(
            base_options=BaseOptions(model_asset_path=str(folder / self.asset)),
            running_mode=vision.RunningMode.VIDEO,
            **{**self.settings, **settings},
        )
        task = self.task.create_from_options(options)
        try:
            for number, image in enumerate(images, 1):
                picture = mp.Image(mp.ImageFormat.SRGB, np.ascontiguousarray(image))
                yield getattr(task, self.method)(picture, STEP_MS * number)
        finally:
            close_task(task)


class Direct(Reference):
    """A task that MediaPipe does not have: the service's own detector in this process."""

    def run(self, folder: Path, images: Sequence[np.ndarray], **_: Any) -> Iterator[Any]:
        options = parse_options(OBJECT_DETECTION_3D.options, self.options_sent)
        detector = OBJECT_DETECTION_3D.open(folder / self.asset, options, Mode.VIDEO)
        try:
            for number, image in enumerate(images, 1):
                yield detector.detect(np.ascontiguousarray(image), STEP_MS * number)
        finally:
            detector.close()


def clip_for(task: str, frames: int) -> list[np.ndarray]:
    """A clip made of the pictures of `make models`: a person, a hand, a cat, or a cup."""
    if task == "hands":
        return list(vision_clips.moving_hand(frames))
    pictures = {
        "objects": vision_clips.cat,
        "tracks": vision_clips.cat,
        "boxes3d": vision_clips.coffee,
    }
    return list(vision_clips.moving(pictures.get(task, vision_clips.astronaut)(), frames))


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two boxes x, y, width, height."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(0.0, across) * max(0.0, down)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def _same_points(ours: Any, theirs: Sequence[Any], tolerance: float = LANDMARK_TOLERANCE) -> None:
    assert len(ours) == len(theirs)
    a = np.array([(p.x, p.y, p.z) for p in ours])
    b = np.array([(p.x, p.y, p.z) for p in theirs])
    assert np.abs(a - b).max() <= tolerance


def _faces(answer: Any, result: Any, size: tuple[int, int]) -> None:
    assert len(answer.faces) == len(result.detections)
    width, height = size
    for ours, theirs in zip(answer.faces, result.detections, strict=True):
        box = theirs.bounding_box
        expected = (
            *(box.origin_x / width, box.origin_y / height),
            *(box.width / width, box.height / height),
        )
        assert box_iou((ours.x, ours.y, ours.width, ours.height), expected) >= BOX_IOU
        assert abs(ours.confidence - theirs.categories[0].score) < 0.05
        assert len(ours.keypoints) == 6
        for point, expected_point in zip(ours.keypoints, theirs.keypoints, strict=True):
            assert abs(point.x - expected_point.x) <= LANDMARK_TOLERANCE
            assert abs(point.y - expected_point.y) <= LANDMARK_TOLERANCE


def _mesh(answer: Any, result: Any, _: tuple[int, int]) -> None:
    assert len(answer.faces) == len(result.face_landmarks)
    for ours, theirs in zip(answer.faces, result.face_landmarks, strict=True):
        assert len(ours.landmarks) == 478
        _same_points(ours.landmarks, theirs)


def _iris(answer: Any, result: Any, _: tuple[int, int]) -> None:
    assert [eye.eye for eye in answer.eyes] == ["left", "right"] * len(result.face_landmarks)
    for number, points in enumerate(result.face_landmarks):
        left, right = answer.eyes[2 * number : 2 * number + 2]
        _same_points(left.iris_landmarks, points[473:478])
        _same_points(right.iris_landmarks, points[468:473])
        for eye in (left, right):
            xs = [p.x for p in eye.eye_landmarks]
            ys = [p.y for p in eye.eye_landmarks]
            centre = eye.iris_landmarks[0]
            assert len(eye.eye_landmarks) == 16
            assert min(xs) < centre.x < max(xs)
            assert min(ys) - 0.01 < centre.y < max(ys) + 0.01
        # A face that looks at the camera has its left eye on the right of the picture.
        assert left.iris_landmarks[0].x > right.iris_landmarks[0].x


def _hands(answer: Any, result: Any, _: tuple[int, int]) -> None:
    assert len(answer.hands) == len(result.hand_landmarks)
    for number, ours in enumerate(answer.hands):
        assert len(ours.landmarks) == 21
        _same_points(ours.landmarks, result.hand_landmarks[number])
        _same_points(ours.world_landmarks, result.hand_world_landmarks[number])
        assert ours.handedness == result.handedness[number][0].category_name
        assert abs(ours.confidence - result.handedness[number][0].score) < 0.1
        named = [g.category_name for g in result.gestures[number] if g.category_name != "None"]
        assert [g.name for g in ours.gestures] == named


def _pose(ours: Any, points: Sequence[Any], world: Sequence[Any]) -> None:
    assert len(ours.landmarks) == len(ours.world_landmarks) == 33
    # Depth is in the scale of x, and of a whole body it is as uncertain as the body is wide.
    xy = [(p.x, p.y) for p in ours.landmarks]
    assert np.abs(np.array(xy) - [(p.x, p.y) for p in points]).max() <= LANDMARK_TOLERANCE
    _same_points(ours.world_landmarks, world, 0.06)
    assert abs(ours.confidence - np.mean([p.presence for p in points])) < 0.05


def _poses(answer: Any, result: Any, _: tuple[int, int]) -> None:
    assert len(answer.poses) == len(result.pose_landmarks)
    for number, ours in enumerate(answer.poses):
        _pose(ours, result.pose_landmarks[number], result.pose_world_landmarks[number])


def _holistic(answer: Any, result: Any, _: tuple[int, int]) -> None:
    assert answer.HasField("face") == bool(result.face_landmarks)
    assert answer.HasField("pose") == bool(result.pose_landmarks)
    if result.face_landmarks:
        _same_points(answer.face.landmarks, result.face_landmarks)
    if result.pose_landmarks:
        _pose(answer.pose, result.pose_landmarks, result.pose_world_landmarks)
    sides = {"Left": result.left_hand_landmarks, "Right": result.right_hand_landmarks}
    assert [hand.handedness for hand in answer.hands] == [
        s for s, points in sides.items() if points
    ]
    for hand in answer.hands:
        _same_points(hand.landmarks, sides[hand.handedness])


def _objects(answer: Any, result: Any, size: tuple[int, int]) -> None:
    assert len(answer.objects) == len(result.detections)
    width, height = size
    for ours, theirs in zip(answer.objects, result.detections, strict=True):
        box = theirs.bounding_box
        expected = (
            *(box.origin_x / width, box.origin_y / height),
            *(box.width / width, box.height / height),
        )
        found = (ours.bbox.x, ours.bbox.y, ours.bbox.width, ours.bbox.height)
        assert box_iou(found, expected) >= BOX_IOU
        assert ours.label == theirs.categories[0].category_name
        assert abs(ours.confidence - theirs.categories[0].score) < 0.05
        assert ours.track_id == 0


def _tracks(answer: Any, result: Any, size: tuple[int, int]) -> None:
    """Each track has a box of this frame; ids are compared elsewhere."""
    width, height = size
    left = [
        (d.bounding_box.origin_x, d.bounding_box.origin_y, d.categories[0].score)
        for d in result.detections
    ]
    for each in answer.objects:
        seen = min(
            left, key=lambda b: abs(b[0] - each.bbox.x * width) + abs(b[2] - each.confidence)
        )
        assert abs(seen[1] - each.bbox.y * height) < 1 + height / 50
        assert abs(seen[2] - each.confidence) < 0.05
        left.remove(seen)


def _boxes_3d(answer: Any, result: Any, _: tuple[int, int]) -> None:
    assert len(answer.objects) == len(result.objects)
    for ours, theirs in zip(answer.objects, result.objects, strict=True):
        _same_points(ours.keypoints_2d, theirs.keypoints_2d, 0.005)
        assert ours.label == theirs.label


def _mask(answer: Any, result: Any, size: tuple[int, int]) -> None:
    width, height = size
    assert (answer.width, answer.height, answer.format) == (width, height, "binary")
    ours = np.frombuffer(answer.mask, np.uint8).reshape(height, width)
    assert set(np.unique(ours)) <= {0, 255}
    theirs = result.confidence_masks[-1].numpy_view().reshape(height, width) > 0.5
    assert mask_iou(ours > 0, theirs) >= MASK_IOU


REFERENCES = {
    "faces": Reference(
        *("StreamFaceDetection", "blaze_face_short_range.tflite"),
        *(vision.FaceDetector, vision.FaceDetectorOptions, "detect_for_video", _faces),
    ),
    "mesh": Reference(
        *("StreamFaceMesh", "face_landmarker.task"),
        *(vision.FaceLandmarker, vision.FaceLandmarkerOptions, "detect_for_video", _mesh),
    ),
    "iris": Reference(
        *("StreamIrisTracking", "face_landmarker.task"),
        *(vision.FaceLandmarker, vision.FaceLandmarkerOptions, "detect_for_video", _iris),
    ),
    "hands": Reference(
        *("StreamHandTracking", "gesture_recognizer.task"),
        *(vision.GestureRecognizer, vision.GestureRecognizerOptions),
        *("recognize_for_video", _hands, {"num_hands": 2}),
    ),
    "pose": Reference(
        *("StreamPoseTracking", "pose_landmarker_full.task"),
        *(vision.PoseLandmarker, vision.PoseLandmarkerOptions, "detect_for_video", _poses),
    ),
    "holistic": Reference(
        *("StreamHolisticTracking", "holistic_landmarker.task"),
        *(vision.HolisticLandmarker, vision.HolisticLandmarkerOptions),
        *("detect_for_video", _holistic),
    ),
    "selfie": Reference(
        *("StreamSelfieSegmentation", "selfie_segmenter.tflite"),
        *(vision.ImageSegmenter, vision.ImageSegmenterOptions, "segment_for_video", _mask),
    ),
    "hair": Reference(
        *("StreamHairSegmentation", "hair_segmenter.tflite"),
        *(vision.ImageSegmenter, vision.ImageSegmenterOptions, "segment_for_video", _mask),
    ),
    "objects": Reference(
        *("StreamObjectDetection", "object_detector.tflite"),
        *(vision.ObjectDetector, vision.ObjectDetectorOptions, "detect_for_video", _objects),
        {"score_threshold": 0.5, "category_denylist": ["???"]},
    ),
    "tracks": Reference(
        *("StreamObjectTracking", "object_detector.tflite"),
        *(vision.ObjectDetector, vision.ObjectDetectorOptions, "detect_for_video", _tracks),
        {"score_threshold": 0.1, "category_denylist": ["???"]},
    ),
    "boxes3d": Direct(
        *("StreamObjectDetection3D", "objectron.task"),
        *(Objectron, dict, "detect", _boxes_3d),
        options_sent={"object_class": "cup", "min_detection_confidence": "0.3"},
    ),
}
