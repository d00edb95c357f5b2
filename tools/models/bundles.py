"""Builds MediaPipe Tasks bundles (.task) from their parts, in the formats of mediapipe 1.2."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

from tools.models import metadata

ALIGNMENT = 16  # bytes; the models are used in place, as they lie in the bundle
LOCAL_HEADER = 30  # bytes of a zip member's header before its name

GESTURES = (
    "None",
    "Closed_Fist",
    "Open_Palm",
    "Pointing_Up",
    "Thumb_Down",
    "Thumb_Up",
    "Victory",
    "ILoveYou",
)


def write_bundle(path: Path, members: Mapping[str, bytes]) -> None:
    """Write a zip of stored members whose contents begin at multiples of 16 bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as bundle:
        for name, data in members.items():
            bundle.start_dir += -(bundle.start_dir + LOCAL_HEADER + len(name)) % ALIGNMENT
            bundle.writestr(zipfile.ZipInfo(name, metadata.ZIP_EPOCH), data)


def read_bundle(path: Path) -> dict[str, bytes]:
    """Return the members of a bundle by name."""
    with zipfile.ZipFile(path) as bundle:
        return {name: bundle.read(name) for name in bundle.namelist()}


def gesture_recognizer(inputs: Mapping[str, Path], out: Path) -> None:
    """Hands, and the two stages of the canned gesture classifier with its labels."""
    classifier = metadata.classifier_model(
        inputs["canned_gesture_classifier.tflite"].read_bytes(),
        "Gesture Classifier",
        "gesture embedding",
        "hand gestures",
        GESTURES,
    )
    inner = out / "hand_gesture_recognizer.task"
    write_bundle(
        inner,
        {
            "gesture_embedder.tflite": inputs["gesture_embedder.tflite"].read_bytes(),
            "canned_gesture_classifier.tflite": classifier,
        },
    )
    write_bundle(
        out / "gesture_recognizer.task",
        {
            "hand_landmarker.task": inputs["hand_landmarker"].read_bytes(),
            inner.name: inner.read_bytes(),
        },
    )


def holistic_landmarker(inputs: Mapping[str, Path], out: Path) -> None:
    """The models of the face, hand and pose bundles, and the one that refines a hand's crop."""
    hand = read_bundle(inputs["hand_landmarker"])
    recrop = inputs["hand_recrop.tflite"].read_bytes()
    write_bundle(
        out / "holistic_landmarker.task",
        {
            **{
                name: data
                for name, data in read_bundle(inputs["face_landmarker"]).items()
                if name.endswith(".tflite")
            },
            **read_bundle(inputs["pose_landmarker_full"]),
            "hand_landmarks_detector.tflite": hand["hand_landmarks_detector.tflite"],
            "hand_roi_refinement.tflite": metadata.image_model(recrop, "hand recrop"),
        },
    )


def pose_landmarker_lite(inputs: Mapping[str, Path], out: Path) -> None:
    """The full bundle with the lite landmark model."""
    _pose_landmarker("lite", inputs, out)


def pose_landmarker_heavy(inputs: Mapping[str, Path], out: Path) -> None:
    """The full bundle with the heavy landmark model."""
    _pose_landmarker("heavy", inputs, out)


def _pose_landmarker(variant: str, inputs: Mapping[str, Path], out: Path) -> None:
    landmarks = inputs[f"pose_landmark_{variant}.tflite"].read_bytes()
    detector = read_bundle(inputs["pose_landmarker_full"])["pose_detector.tflite"]
    write_bundle(
        out / f"pose_landmarker_{variant}.task",
        {
            "pose_detector.tflite": detector,
            "pose_landmarks_detector.tflite": metadata.image_model(
                landmarks, f"Pose landmark {variant}"
            ),
        },
    )


def hair_segmenter(inputs: Mapping[str, Path], out: Path) -> None:
    """The hair model with the metadata of a segmenter: background and hair."""
    model = inputs["hair_segmentation.tflite"].read_bytes()
    labelled = metadata.segmenter_model(model, "HairSegmenter", ("background", "hair"))
    (out / "hair_segmenter.tflite").write_bytes(labelled)
