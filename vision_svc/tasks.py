"""The table of vision tasks: what each runs, on which model files, and with which options.

The names are those of `shared.pipelines`. Importing this module imports MediaPipe.
"""

from __future__ import annotations

from collections.abc import Mapping

from ml import mediapipe_pb2 as pb
from shared import pipelines
from vision_svc.backends import mediapipe_tasks, objectron, objects, segmentation
from vision_svc.detector import Asset, StreamTask, VisionTask
from vision_svc.options import Choice, Count, Labels, Number, Numbers, Ratio, Score
from vision_svc.scenes import AUTO_FLIP, MEDIA_SEQUENCE, TEMPLATE_MATCHING
from vision_svc.scenes.auto_flip import MAX_LOOK_AHEAD, AutoFlip
from vision_svc.scenes.sequence import MediaSequence
from vision_svc.scenes.subjects import SubjectTasks
from vision_svc.scenes.templates import TemplateMatcher


def _variants(option: str, assets: Mapping[str, Asset]) -> Choice:
    return Choice(option, tuple(assets))


_DETECTION = Score("min_detection_confidence", 0.5)
_TRACKING = (
    _DETECTION,
    Score("min_presence_confidence", 0.5),
    Score("min_tracking_confidence", 0.5),
)
_FACE_RANGES = {
    "short": Asset("blaze_face_short_range.tflite", 8),
    "full": Asset("blaze_face_full_range_sparse.tflite", 10),
}
_POSE_MODELS = {
    "full": Asset("pose_landmarker_full.task", 45),
    "lite": Asset("pose_landmarker_lite.task", 35),
    "heavy": Asset("pose_landmarker_heavy.task", 110),
}
_SELFIE_MODELS = {
    "general": Asset("selfie_segmenter.tflite", 8),
    "landscape": Asset("selfie_segmenter_landscape.tflite", 8),
}
_LABELS = (Labels("allow_labels"), Labels("deny_labels"))
_MASK_FORMAT = Choice("mask_format", ("binary", "alpha"))

FACE_DETECTION = VisionTask(
    pipelines.FACE_DETECTION.name,
    mediapipe_tasks.face_detector,
    _FACE_RANGES,
    (Count("max_faces", 100, 100), _DETECTION, _variants("face_range", _FACE_RANGES)),
    response=pb.FaceDetectionResponse,
    variant_option="face_range",
    keeps_state=False,
)
FACE_MESH = VisionTask(
    pipelines.FACE_MESH.name,
    mediapipe_tasks.face_mesh,
    {"": Asset("face_landmarker.task", 30)},
    (Count("max_faces", 1, 16), *_TRACKING),
    response=pb.FaceMeshResponse,
)
IRIS_TRACKING = VisionTask(
    pipelines.IRIS_TRACKING.name,
    mediapipe_tasks.iris_tracker,
    {"": Asset("face_landmarker.task", 30)},
    (Count("max_faces", 1, 16), *_TRACKING),
    response=pb.IrisTrackingResponse,
)
HAND_TRACKING = VisionTask(
    pipelines.HAND_TRACKING.name,
    mediapipe_tasks.gesture_recognizer,
    {"": Asset("gesture_recognizer.task", 35)},
    (Count("max_hands", 2, 16), *_TRACKING),
    response=pb.HandDetectionResponse,
)
POSE_TRACKING = VisionTask(
    pipelines.POSE_TRACKING.name,
    mediapipe_tasks.pose_landmarker,
    _POSE_MODELS,
    (Count("max_poses", 1, 8), *_TRACKING, _variants("pose_model", _POSE_MODELS)),
    response=pb.PoseDetectionResponse,
    variant_option="pose_model",
)
HOLISTIC_TRACKING = VisionTask(
    pipelines.HOLISTIC_TRACKING.name,
    mediapipe_tasks.holistic_landmarker,
    {"": Asset("holistic_landmarker.task", 90)},
    (_DETECTION, Score("min_presence_confidence", 0.5)),
    response=pb.HolisticTrackingResponse,
)
SELFIE_SEGMENTATION = VisionTask(
    pipelines.SELFIE_SEGMENTATION.name,
    segmentation.segmenter,
    _SELFIE_MODELS,
    (_MASK_FORMAT, _variants("selfie_model", _SELFIE_MODELS)),
    response=pb.SegmentationResponse,
    variant_option="selfie_model",
    keeps_state=False,
)
HAIR_SEGMENTATION = VisionTask(
    pipelines.HAIR_SEGMENTATION.name,
    segmentation.segmenter,
    {"": Asset("hair_segmenter.tflite", 30)},
    (_MASK_FORMAT,),
    response=pb.SegmentationResponse,
    keeps_state=False,
)
OBJECT_DETECTOR = VisionTask(
    pipelines.OBJECT_DETECTOR.name,
    objects.object_detector,
    {"": Asset("object_detector.tflite", 60)},
    (Count("max_objects", 25, 100), _DETECTION, *_LABELS),
    response=pb.ObjectDetectionResponse,
    keeps_state=False,
)
OBJECT_TRACKING = VisionTask(
    pipelines.OBJECT_TRACKING.name,
    objects.object_tracker,
    {"": Asset("object_detector.tflite", 60)},
    (
        *(Count("max_objects", 25, 100), _DETECTION),
        *(Score("min_tracking_confidence", 0.1), *_LABELS),
    ),
    response=pb.ObjectTrackingResponse,
)
OBJECT_DETECTION_3D = VisionTask(
    pipelines.OBJECT_DETECTION_3D.name,
    objectron.objectron,
    {"": Asset("objectron.task", 90)},
    (
        *(Count("max_objects", 5, 20), Choice("object_class", tuple(objectron.CLASS_LABELS))),
        *(_DETECTION, Score("min_presence_confidence", 0.5)),
        *(Number("focal_x", 1.0, 0.1, 20.0), Number("focal_y", 1.0, 0.1, 20.0)),
    ),
    response=pb.ObjectDetection3DResponse,
)

_TEMPLATE_MATCHING = StreamTask(
    TEMPLATE_MATCHING,
    (
        Numbers("scales", "1", 0.1, 4.0, 8),
        Count("max_matches", 100, 1000),
        Score("max_overlap", 0.3),
        Choice("match_on", ("rgb", "gray")),
    ),
    lambda _, limits: TemplateMatcher(limits),
)
_SUBJECTS = SubjectTasks(FACE_DETECTION, OBJECT_DETECTOR)
_SUBJECT_OPTIONS = (
    Choice("subjects", ("all", "faces", "objects")),
    _DETECTION,
    _variants("face_range", _FACE_RANGES),
)
_AUTO_FLIP = StreamTask(
    AUTO_FLIP,
    (
        Ratio("aspect", "9:16"),
        Choice("camera", ("smooth", "still")),
        Count("look_ahead", 0, MAX_LOOK_AHEAD, 0),
        Choice("output_format", ("same", "jpeg")),
        Count("jpeg_quality", 90, 100),
        *_SUBJECT_OPTIONS,
    ),
    lambda instances, _: AutoFlip(instances, _SUBJECTS),
)
_MEDIA_SEQUENCE = StreamTask(
    MEDIA_SEQUENCE,
    (Count("sample_every", 10, 1000), *_SUBJECT_OPTIONS),
    lambda instances, _: MediaSequence(instances, _SUBJECTS),
    every_frame=True,
)

# Tasks on a model of their own, which LoadModel may replace.
TASKS: Mapping[str, VisionTask] = {
    task.name: task
    for task in (
        *(FACE_DETECTION, FACE_MESH, IRIS_TRACKING, HAND_TRACKING),
        *(POSE_TRACKING, HOLISTIC_TRACKING, SELFIE_SEGMENTATION, HAIR_SEGMENTATION),
        *(OBJECT_DETECTOR, OBJECT_TRACKING, OBJECT_DETECTION_3D),
    )
}
# Tasks on streams alone.
STREAM_TASKS: Mapping[str, StreamTask] = {
    task.name: task for task in (_TEMPLATE_MATCHING, _AUTO_FLIP, _MEDIA_SEQUENCE)
}
