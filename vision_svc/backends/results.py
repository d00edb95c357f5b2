"""Converts the results of MediaPipe's C library to responses.

Coordinates are normalised: x and y run from 0 to 1 over the picture's width and height.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mediapipe.tasks.python.vision import FaceLandmarksConnections

from ml import mediapipe_pb2 as pb
from vision_svc.backends.landmarks import (
    LandmarkField,
    view,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vision_svc.backends.byte_track import Box, Track
    from vision_svc.backends.landmarks import Points
    from vision_svc.backends.objectron import FoundBox
    from vision_svc.frames.types import Rgb

# BlazeFace's key points in the order of its output; left and right are the person's own.
# Source: mediapipe/modules/face_detection, FaceKeyPoint.
FACE_KEYPOINTS = (
    *("right_eye", "left_eye", "nose_tip"),
    *("mouth_center", "right_ear_tragion", "left_ear_tragion"),
)

# Pairs of landmark indices, the outlines of the mesh: lips, eyes, brows and the oval of the face.
FACE_CONTOURS = tuple(
    index
    for connection in FaceLandmarksConnections.FACE_LANDMARKS_CONTOURS
    for index in (connection.start, connection.end)
)

# Points of the mesh: the iris (centre, then rim) and the ring around each eye, from the outer
# corner along the lower lid to the inner corner and back. The person's own left and right. Source:
# FACE_LANDMARKS_LEFT_EYE, _RIGHT_EYE, _LEFT_IRIS and _RIGHT_IRIS of FaceLandmarksConnections.
LEFT_IRIS = (473, 474, 475, 476, 477)
RIGHT_IRIS = (468, 469, 470, 471, 472)
LEFT_EYE = (
    *(263, 249, 390, 373, 374, 380, 381, 382),
    *(362, 398, 384, 385, 386, 387, 388, 466),
)
RIGHT_EYE = (
    *(33, 7, 163, 144, 145, 153, 154, 155),
    *(133, 173, 157, 158, 159, 160, 161, 246),
)

# Points of the pose at each hand: wrist, little finger, index finger, thumb.
# Source: mediapipe/modules/pose_landmark, the 33 BlazePose points.
POSE_LEFT_HAND = (15, 17, 19, 21)
POSE_RIGHT_HAND = (16, 18, 20, 22)

# The gesture recogniser's name for a hand that shows none of its gestures.
_NO_GESTURE = b"None"


_MESH_POINTS = LandmarkField(pb.FaceMesh, "landmarks", optional=False)
_IRIS_POINTS = LandmarkField(pb.IrisTracking, "iris_landmarks", optional=False)
_EYE_POINTS = LandmarkField(pb.IrisTracking, "eye_landmarks", optional=False)
_HAND_POINTS = LandmarkField(pb.HandDetection, "landmarks")
_HAND_WORLD_POINTS = LandmarkField(pb.HandDetection, "world_landmarks")
_POSE_POINTS = LandmarkField(pb.PoseDetection, "landmarks")
_POSE_WORLD_POINTS = LandmarkField(pb.PoseDetection, "world_landmarks")


def _fill_mesh(mesh: pb.FaceMesh, points: Points, confidence: float) -> None:
    _MESH_POINTS.add(mesh, points)
    mesh.contours.extend(FACE_CONTOURS)
    mesh.confidence = confidence


def _fill_pose(pose: pb.PoseDetection, points: Points, world: Points) -> None:
    _POSE_POINTS.add(pose, points)
    _POSE_WORLD_POINTS.add(pose, world)
    pose.confidence = _mean(points["presence"])


def _fill_hand(hand: pb.HandDetection, points: Points, world: Points) -> None:
    _HAND_POINTS.add(hand, points)
    _HAND_WORLD_POINTS.add(hand, world)


def _mean(scores: npt.NDArray[np.float32]) -> float:
    return float(scores.mean()) if len(scores) else 0.0


def _best_first(result: Any) -> list[Any]:
    """The detections of an MpDetectionResult."""
    return sorted(
        (result.detections[i] for i in range(result.detections_count)),
        key=lambda detection: float(detection.categories[0].score),
        reverse=True,
    )


def face_detections(result: Any, image: Rgb, max_faces: int) -> pb.FaceDetectionResponse:
    """The best `max_faces` faces of an MpDetectionResult, whose boxes are in pixels."""
    height, width = image.shape[:2]
    response = pb.FaceDetectionResponse()
    for detection in _best_first(result)[:max_faces]:
        box = detection.bounding_box
        face = response.faces.add(
            x=box.left / width,
            y=box.top / height,
            width=(box.right - box.left) / width,
            height=(box.bottom - box.top) / height,
            confidence=detection.categories[0].score,
        )
        for i in range(detection.keypoints_count):
            p = detection.keypoints[i]
            face.keypoints.add(x=p.x, y=p.y, confidence=p.score, name=FACE_KEYPOINTS[i])
    return response


def object_detections(result: Any, image: Rgb) -> pb.ObjectDetectionResponse:
    """The objects of an MpDetectionResult, the best first; its boxes are in pixels."""
    height, width = image.shape[:2]
    response = pb.ObjectDetectionResponse()
    for detection in _best_first(result):
        box, category = detection.bounding_box, detection.categories[0]
        response.objects.add(
            label=(category.category_name or b"").decode(errors="replace") or str(category.index),
            confidence=category.score,
            bbox=pb.BoundingBox(
                x=box.left / width,
                y=box.top / height,
                width=(box.right - box.left) / width,
                height=(box.bottom - box.top) / height,
            ),
        )
    return response


def tracked_objects(tracks: Sequence[Track], image: Rgb) -> pb.ObjectTrackingResponse:
    """The tracks that were seen in this picture; their boxes are in pixels."""
    height, width = image.shape[:2]

    def normalised(box: Box) -> pb.BoundingBox:
        x, y, w, h = box
        return pb.BoundingBox(x=x / width, y=y / height, width=w / width, height=h / height)

    response = pb.ObjectTrackingResponse()
    for track in tracks:
        response.objects.add(
            track_id=track.number,
            label=track.label,
            bbox=normalised(track.detection.box),
            confidence=track.detection.score,
            trajectory=map(normalised, track.trajectory),
        )
    return response


def boxes_3d(found: Sequence[FoundBox], name: str) -> pb.ObjectDetection3DResponse:
    """The boxes of objects of one class."""
    response = pb.ObjectDetection3DResponse()
    for each in found:
        left, top, width, height = each.box
        (x, y, z), (roll, pitch, yaw) = each.lifted.points[0], each.lifted.angles
        response.objects.add(
            label=name,
            confidence=each.score,
            bbox=pb.BoundingBox(x=left, y=top, width=width, height=height),
            pose=pb.Pose3D(x=x, y=y, z=z, roll=roll, pitch=pitch, yaw=yaw),
            keypoints_3d=(pb.Landmark(x=x, y=y, z=z) for x, y, z in each.lifted.points),
            keypoints_2d=(pb.Landmark(x=x, y=y) for x, y in each.points),
            rotation=each.lifted.rotation.ravel(),
            scale=each.lifted.scale,
        )
    return response


def face_meshes(faces: Sequence[Points], scores: Sequence[float]) -> pb.FaceMeshResponse:
    """The 478 points of each face, with the face detector's score as the confidence."""
    response = pb.FaceMeshResponse()
    for points, score in zip(faces, scores, strict=True):
        _fill_mesh(response.faces.add(), points, score)
    return response


def irises(faces: Sequence[Points], scores: Sequence[float]) -> pb.IrisTrackingResponse:
    """Both eyes of each face, the left eye first."""
    response = pb.IrisTrackingResponse()
    for points, score in zip(faces, scores, strict=True):
        for side, iris, ring in (("left", LEFT_IRIS, LEFT_EYE), ("right", RIGHT_IRIS, RIGHT_EYE)):
            eye = response.eyes.add(eye=side, confidence=score)
            _IRIS_POINTS.add(eye, points[list(iris)])
            _EYE_POINTS.add(eye, points[list(ring)])
    return response


def hands(result: Any) -> pb.HandDetectionResponse:
    """The hands of an MpGestureRecognizerResult."""
    response = pb.HandDetectionResponse()
    for i in range(result.hand_landmarks_count):
        side, gestures = result.handedness[i].categories[0], result.gestures[i]
        hand = response.hands.add(handedness=side.category_name, confidence=side.score)
        _fill_hand(hand, view(result.hand_landmarks[i]), view(result.hand_world_landmarks[i]))
        for j in range(gestures.categories_count):
            gesture = gestures.categories[j]
            if gesture.category_name != _NO_GESTURE:
                hand.gestures.add(name=gesture.category_name, confidence=gesture.score)
    return response


def poses(result: Any) -> pb.PoseDetectionResponse:
    """The poses of an MpPoseLandmarkerResult."""
    response = pb.PoseDetectionResponse()
    for i in range(result.pose_landmarks_count):
        points, world = view(result.pose_landmarks[i]), view(result.pose_world_landmarks[i])
        _fill_pose(response.poses.add(), points, world)
    return response


def holistic(result: Any, face_scores: Sequence[float]) -> pb.HolisticTrackingResponse:
    """The person of an MpHolisticLandmarkerResult; parts that were not found stay unset."""
    response = pb.HolisticTrackingResponse()
    face, pose = view(result.face_landmarks), view(result.pose_landmarks)
    if len(face):
        _fill_mesh(response.face, face, face_scores[0])
    if len(pose):
        _fill_pose(response.pose, pose, view(result.pose_world_landmarks))
    sides = (
        ("Left", POSE_LEFT_HAND, result.left_hand_landmarks, result.left_hand_world_landmarks),
        ("Right", POSE_RIGHT_HAND, result.right_hand_landmarks, result.right_hand_world_landmarks),
    )
    for side, at_hand, points, world in sides:
        if points.landmarks_count:
            seen = pose["visibility"][list(at_hand)] if len(pose) else pose["visibility"]
            hand = response.hands.add(handedness=side, confidence=_mean(seen))
            _fill_hand(hand, view(points), view(world))
    return response
