"""From what MediaPipe and LiteRT answer to the messages of the wire.

Coordinates are normalised: x and y from 0 to 1 over the picture's width and height.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mediapipe.tasks.python.vision import FaceLandmarksConnections

from ml import mediapipe_pb2 as pb

if TYPE_CHECKING:
    from shared.frames.types import Rgb

# BlazeFace's key points in the order of its output; right and left are the person's own.
# Source: mediapipe/modules/face_detection, FaceKeyPoint.
FACE_KEYPOINTS = (
    *("right_eye", "left_eye", "nose_tip"),
    *("mouth_center", "right_ear_tragion", "left_ear_tragion"),
)

# Landmark indices of the mesh's outlines in pairs: lips, eyes, brows and the face's oval.
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

# What the gesture recogniser calls a hand that shows none of its gestures.
_NO_GESTURE = "None"


def _landmarks(points: Iterable[Any]) -> list[pb.Landmark]:
    """Points of any MediaPipe landmark type; visibility and presence are unset where not given."""
    return [
        pb.Landmark(x=p.x, y=p.y, z=p.z, visibility=p.visibility, presence=p.presence)
        for p in points
    ]


def _fill_mesh(mesh: pb.FaceMesh, points: Sequence[Any], confidence: float) -> None:
    """Written in place, as copies of 478 messages would be half of the work."""
    add = mesh.landmarks.add
    for p in points:
        add(x=p.x, y=p.y, z=p.z)
    mesh.contours.extend(FACE_CONTOURS)
    mesh.confidence = confidence


def _fill_pose(pose: pb.PoseDetection, points: Sequence[Any], world: Sequence[Any]) -> None:
    pose.landmarks.extend(_landmarks(points))
    pose.world_landmarks.extend(_landmarks(world))
    pose.confidence = _mean([p.presence for p in points])


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores) if scores else 0.0


def face_detections(result: Any, image: Rgb, most: int) -> pb.FaceDetectionResponse:
    """The best `most` faces of a FaceDetectorResult; its boxes are in pixels."""
    height, width = image.shape[:2]
    found = sorted(result.detections, key=lambda d: d.categories[0].score, reverse=True)[:most]
    return pb.FaceDetectionResponse(
        faces=[
            pb.FaceDetection(
                x=d.bounding_box.origin_x / width,
                y=d.bounding_box.origin_y / height,
                width=d.bounding_box.width / width,
                height=d.bounding_box.height / height,
                confidence=d.categories[0].score,
                keypoints=[
                    pb.KeyPoint(x=p.x, y=p.y, confidence=p.score, name=name)
                    for p, name in zip(d.keypoints, FACE_KEYPOINTS, strict=True)
                ],
            )
            for d in found
        ]
    )


def face_meshes(faces: Sequence[Any], scores: Sequence[float]) -> pb.FaceMeshResponse:
    """The 478 points of each face, with the score that the face detector gives it."""
    response = pb.FaceMeshResponse()
    for points, score in zip(faces, scores, strict=True):
        _fill_mesh(response.faces.add(), points, score)
    return response


def irises(faces: Sequence[Any], scores: Sequence[float]) -> pb.IrisTrackingResponse:
    """Both eyes of each face, the left one first."""
    eyes = (("left", LEFT_IRIS, LEFT_EYE), ("right", RIGHT_IRIS, RIGHT_EYE))
    return pb.IrisTrackingResponse(
        eyes=[
            pb.IrisTracking(
                iris_landmarks=_landmarks(points[i] for i in iris),
                eye_landmarks=_landmarks(points[i] for i in ring),
                eye=side,
                confidence=score,
            )
            for points, score in zip(faces, scores, strict=True)
            for side, iris, ring in eyes
        ]
    )


def hands(result: Any) -> pb.HandDetectionResponse:
    """The hands of a GestureRecognizerResult."""
    return pb.HandDetectionResponse(
        hands=[
            pb.HandDetection(
                landmarks=_landmarks(points),
                handedness=handedness[0].category_name,
                confidence=handedness[0].score,
                gestures=[
                    pb.Gesture(name=g.category_name, confidence=g.score)
                    for g in gestures
                    if g.category_name != _NO_GESTURE
                ],
                world_landmarks=_landmarks(world),
            )
            for points, handedness, gestures, world in zip(
                result.hand_landmarks,
                result.handedness,
                result.gestures,
                result.hand_world_landmarks,
                strict=True,
            )
        ]
    )


def poses(result: Any) -> pb.PoseDetectionResponse:
    """The poses of a PoseLandmarkerResult."""
    response = pb.PoseDetectionResponse()
    for points, world in zip(result.pose_landmarks, result.pose_world_landmarks, strict=True):
        _fill_pose(response.poses.add(), points, world)
    return response


def holistic(result: Any, face_scores: Sequence[float]) -> pb.HolisticTrackingResponse:
    """One person of a HolisticLandmarkerResult; what was not found stays unset."""
    response = pb.HolisticTrackingResponse()
    if result.face_landmarks:
        _fill_mesh(response.face, result.face_landmarks, face_scores[0])
    if result.pose_landmarks:
        _fill_pose(response.pose, result.pose_landmarks, result.pose_world_landmarks)
    sides = (
        ("Left", POSE_LEFT_HAND, result.left_hand_landmarks, result.left_hand_world_landmarks),
        ("Right", POSE_RIGHT_HAND, result.right_hand_landmarks, result.right_hand_world_landmarks),
    )
    for side, at_hand, points, world in sides:
        if points:
            seen = [result.pose_landmarks[i].visibility for i in at_hand if result.pose_landmarks]
            response.hands.add(
                landmarks=_landmarks(points),
                handedness=side,
                confidence=_mean(seen),
                world_landmarks=_landmarks(world),
            )
    return response
