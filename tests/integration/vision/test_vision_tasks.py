"""Every task and every format against MediaPipe on the same frames, through the real server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from tests.integration.vision.conftest import StartVision, Vision
from tests.integration.vision.reference import REFERENCES, Reference, clip_for, mask_iou
from tests.support.optional_models import require_model
from tests.support.vision_frames import FORMATS, encode_clip, encode_still
from tools import vision_clips

FRAMES = 5
# Formats differ until a frame is decoded, for all tasks alike: some tasks see all of them, and the
# others one of each kind, pixels, a picture and a video.
IN_ALL_FORMATS = ("faces", "mesh", "selfie")
KINDS = ("rgb", "gray", "jpeg", "h264")
CASES = [
    (task, name) for task in REFERENCES for name in (FORMATS if task in IN_ALL_FORMATS else KINDS)
]


def found(answer: Any) -> bool:
    """Whether an answer contains anything."""
    if isinstance(answer, pb.HolisticTrackingResponse):
        return answer.HasField("face") and answer.HasField("pose")
    if isinstance(answer, pb.SegmentationResponse):
        return any(answer.mask)
    things: Sequence[Any] = getattr(
        answer,
        next(f for f in ("faces", "eyes", "hands", "poses", "objects") if hasattr(answer, f)),
    )
    return len(things) > 0


def check_against_mediapipe(
    vision: Vision, models: Path, reference: Reference, images: list[np.ndarray], name: str
) -> list[Any]:
    messages, pixels = encode_clip(images, name)
    messages[0].metadata.update(reference.options_sent)
    answers = list(getattr(vision.stub, reference.rpc)(iter(messages)))
    results = list(reference.run(models, pixels))
    assert len(answers) == len(results) == len(images)
    height, width = pixels[0].shape[:2]
    for answer, result in zip(answers, results, strict=True):
        reference.compare(answer, result, (width, height))
    shown = sorted(messages, key=lambda message: message.timestamp_ms)
    for answer, message in zip(answers, shown, strict=True):
        assert answer.timestamp_ms == message.timestamp_ms
        assert answer.frame_number == message.frame_number
        assert answer.timing.inference_ms > 0
        assert answer.frames_dropped == 0
    return answers


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_stream_equals_mediapipe(
    vision: Vision, vision_models: Path, task: str, name: str
) -> None:
    answers = check_against_mediapipe(
        vision, vision_models, REFERENCES[task], clip_for(task, FRAMES), name
    )
    # MediaPipe itself finds no hand in the drawing without its colours.
    assert all(found(answer) for answer in answers) or (task, name) == ("hands", "gray")


@pytest.mark.parametrize("task", [task for task in REFERENCES if task != "hands"])
def test_a_person_who_moves(
    vision: Vision, vision_models: Path, test_data: Path, task: str
) -> None:
    clip = test_data / "pose_world_landmarks.mp4"
    images = list(vision_clips.video_frames(clip, 12, every=4))
    check_against_mediapipe(vision, vision_models, REFERENCES[task], images, "rgb")


@pytest.mark.parametrize(
    ("picture", "sides", "gestures"),
    [
        ("two_hands_thumb_down.jpg", {"Left", "Right"}, {"Thumb_Down"}),
        ("face_and_hand.jpg", {"Right"}, {"Pointing_Up"}),
        ("hand_rock.jpg", {"Right"}, set()),
    ],
)
def test_hands_of_photographs(
    vision: Vision,
    vision_models: Path,
    test_data: Path,
    picture: str,
    sides: set[str],
    gestures: set[str],
) -> None:
    image = vision_clips.read_picture(test_data / picture)
    answers = check_against_mediapipe(
        vision, vision_models, REFERENCES["hands"], [image] * 2, "png"
    )
    for answer in answers:
        assert {hand.handedness for hand in answer.hands} == sides
        assert {gesture.name for hand in answer.hands for gesture in hand.gestures} == gestures


def test_hair_of_a_portrait(vision: Vision, vision_models: Path, test_data: Path) -> None:
    require_model(vision_models.parent, REFERENCES["hair"].asset)
    image = vision_clips.read_picture(test_data / "portrait_hair.jpg")
    (answer,) = check_against_mediapipe(vision, vision_models, REFERENCES["hair"], [image], "png")
    assert 0.3 < np.frombuffer(answer.mask, np.uint8).mean() / 255 < 0.5


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_drawn_hand(vision: Vision, mirrored: bool) -> None:
    image = vision_clips.drawn_hand(mirrored=mirrored)
    answer = vision.stub.DetectHands(
        pb.ImageRequest(image_data=encode_still(image, "png")[0], format="png")
    )
    (hand,) = answer.hands
    assert hand.handedness == ("Right" if mirrored else "Left")
    assert [gesture.name for gesture in hand.gestures] == ["Open_Palm"]
    assert 0.5 < hand.gestures[0].confidence < 1
    assert 0.5 < hand.confidence <= 1


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "raw"])
@pytest.mark.parametrize(("rpc", "task"), [("DetectFaces", "faces"), ("DetectPose", "pose")])
def test_single_pictures(
    vision: Vision, vision_models: Path, rpc: str, task: str, name: str
) -> None:
    image = vision_clips.astronaut()
    data, pixels = encode_still(image, "rgb" if name == "raw" else name)
    height, width = image.shape[:2]
    answer = getattr(vision.stub, rpc)(
        pb.ImageRequest(image_data=data, format=name.upper(), width=width, height=height)
    )
    (result,) = REFERENCES[task].run(vision_models, [pixels])
    REFERENCES[task].compare(answer, result, (width, height))
    assert found(answer)


def test_mesh_contours_are_pairs_of_landmarks(vision: Vision) -> None:
    messages, _ = encode_clip(clip_for("mesh", 1), "rgb")
    (answer,) = vision.stub.StreamFaceMesh(iter(messages))
    (face,) = answer.faces
    assert len(face.contours) == 248
    assert max(face.contours) < 468


def test_the_confidence_of_a_mesh_is_of_its_face(vision: Vision) -> None:
    """A face that is hard to see has a lower score, so it is not a constant."""
    clear = vision_clips.astronaut()
    dim = (clear.astype(np.float32) * 0.12).astype(np.uint8)
    noise = np.random.default_rng(1).normal(0, 20, clear.shape)
    grainy = np.clip(dim + noise, 0, 255).astype(np.uint8)
    scores = []
    for image in (clear, grainy):
        messages, _ = encode_clip([image] * 3, "rgb")
        metadata = {"min_detection_confidence": "0.1", "min_presence_confidence": "0.1"}
        messages[0].metadata.update(metadata)
        answers = list(vision.stub.StreamFaceMesh(iter(messages)))
        scores.append([face.confidence for answer in answers for face in answer.faces])
    assert all(0.8 < score <= 1 for score in scores[0])
    assert all(score < min(scores[0]) for score in scores[1])


@pytest.mark.parametrize("rpc", ["StreamSelfieSegmentation", "StreamHairSegmentation"])
def test_alpha_masks(vision: Vision, vision_models: Path, rpc: str) -> None:
    reference = next(r for r in REFERENCES.values() if r.rpc == rpc)
    images = clip_for("selfie", 2)
    messages, pixels = encode_clip(images, "rgb")
    messages[0].metadata["mask_format"] = "alpha"
    answers = list(getattr(vision.stub, rpc)(iter(messages)))
    for answer, result in zip(answers, reference.run(vision_models, pixels), strict=True):
        height, width = pixels[0].shape[:2]
        assert answer.format == "alpha"
        ours = np.frombuffer(answer.mask, np.uint8).reshape(height, width)
        theirs = result.confidence_masks[-1].numpy_view().reshape(height, width) * 255
        assert np.abs(ours - theirs).mean() < 2
        assert mask_iou(ours > 127, theirs > 127) >= 0.95


@pytest.mark.parametrize("model", ["lite", "heavy"])
def test_other_pose_models(vision: Vision, vision_models: Path, model: str) -> None:
    asset = f"pose_landmarker_{model}.task"
    require_model(vision_models.parent, asset)
    pose = REFERENCES["pose"]
    reference = Reference(pose.rpc, asset, pose.task, pose.options, pose.method, pose.compare)
    messages, pixels = encode_clip(clip_for("pose", 2), "rgb")
    answers = list(
        vision.stub.StreamPoseTracking(iter(messages), metadata=[("vision-pose-model", model)])
    )
    for answer, result in zip(answers, reference.run(vision_models, pixels), strict=True):
        reference.compare(answer, result, (640, 480))


def test_without_models_each_call_names_what_is_missing(
    start_vision: StartVision, tmp_path: Path
) -> None:
    vision = start_vision(model_dir=str(tmp_path))
    messages, _ = encode_clip(clip_for("mesh", 1), "rgb")
    for task, reference in REFERENCES.items():
        with pytest.raises(grpc.RpcError) as raised:
            list(getattr(vision.stub, reference.rpc)(iter(messages)))
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION, task
        assert reference.asset in raised.value.details()
