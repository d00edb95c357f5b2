"""The tasks on whole streams, through the service: templates, auto flip, media sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import grpc
import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from tests.integration.vision.conftest import Vision
from tests.integration.vision.helpers import error_of, person
from tests.support.vision_frames import encode_clip
from tools import vision_clips
from vision_svc.frames.decoder import decode_picture
from vision_svc.frames.types import EncodedFrame, Limits

WHERE = (300, 90, 84, 100)  # the astronaut's face in the first frame of `person`


def template_of(image: np.ndarray) -> np.ndarray:
    x, y, width, height = WHERE
    return np.ascontiguousarray(image[y : y + height, x : x + width])


def matching(
    images: list[np.ndarray], template: np.ndarray, **fields: Any
) -> Iterator[pb.TemplateMatchingRequest]:
    """Requests with raw frames; the template comes with the first one."""
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        yield pb.TemplateMatchingRequest(
            frame_data=image.tobytes(),
            frame_width=width,
            frame_height=height,
            template_data=b"" if number else template.tobytes(),
            template_width=0 if number else template.shape[1],
            template_height=0 if number else template.shape[0],
            timestamp_ms=number * 40,
            frame_number=number,
            **fields,
        )


def test_a_template_is_followed_through_a_clip(vision: Vision) -> None:
    images = person(6)
    template = template_of(images[0])
    answers = list(vision.stub.StreamTemplateMatching(matching(images, template)))
    assert [answer.frame_number for answer in answers] == list(range(6))
    assert [answer.timestamp_ms for answer in answers] == [n * 40 for n in range(6)]
    for image, answer in zip(images, answers, strict=True):
        scores = cv2.matchTemplate(image, template, cv2.TM_CCOEFF_NORMED)
        _, best, _, (x, y) = cv2.minMaxLoc(scores)
        match = answer.matches[0]
        assert (round(match.x * 640), round(match.y * 480)) == (x, y)
        assert match.confidence == pytest.approx(best, abs=1e-3)
        assert match.width * 640 == pytest.approx(WHERE[2])
        assert answer.timing.inference_ms > 0
    assert vision.metric("vision_frames_answered_total", task="template-matching") >= 6


@pytest.mark.parametrize("name", ["jpeg", "h264", "nv12", "png"])
def test_frames_of_any_format(vision: Vision, name: str) -> None:
    images = person(4)
    png = cv2.imencode(".png", template_of(images[0])[..., ::-1])[1].tobytes()
    messages, _ = encode_clip(images, name)
    requests = [
        pb.TemplateMatchingRequest(
            frame_data=frame.frame_data,
            frame_format="" if name in ("jpeg", "png") else frame.format,
            frame_width=frame.width,
            frame_height=frame.height,
            frame_number=number,
            template_data=png,
            threshold=0.7,
            metadata={"match_on": "gray", "scales": "0.8,1"} if number == 0 else {},
        )
        for number, frame in enumerate(messages)
    ]
    answers = list(vision.stub.StreamTemplateMatching(iter(requests)))
    assert sorted(answer.frame_number for answer in answers) == list(range(4))
    first = answers[0].matches[0]
    assert (round(first.x * 640), round(first.y * 480)) == pytest.approx(WHERE[:2], abs=1)
    assert first.scale == 1.0


def test_a_dropped_frame_takes_no_template_along(vision: Vision) -> None:
    """With the policy latest, the frame that brings a template may never be searched."""
    images = person(1) * 120
    template = template_of(images[0])
    requests = list(matching(images, template))
    other = np.ascontiguousarray(images[0][300:340, 200:260])
    requests[60].template_data = other.tobytes()
    requests[60].template_width, requests[60].template_height = 60, 40
    call = vision.stub.StreamTemplateMatching(iter(requests), metadata=[("frame-policy", "latest")])
    answers = list(call)
    assert answers[-1].frames_dropped > 0
    assert answers[-1].frame_number == 119
    assert answers[-1].matches[0].width * 640 == pytest.approx(60)
    assert answers[0].matches[0].width * 640 == pytest.approx(WHERE[2])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"template_data": b""}, "no earlier frame had a template"),
        ({"template_data": b"\x07" * (84 * 100 * 3)}, "flat"),
        ({"template_width": 83}, "83 x 100 in rgb is 24900 bytes, not 25200"),
        ({"threshold": 1.5}, "threshold must be a number from 0 to 1, not 1.5"),
        ({"frame_data": b"1234", "frame_width": 0, "frame_height": 0}, "must be a jpeg, png"),
        ({"frame_data": b""}, "frame_data is empty"),
        ({"frame_data": b"\x01" * 1200, "frame_width": 20, "frame_height": 20}, "larger than the"),
        ({"frame_format": "tiff"}, "'tiff' is not known"),
        ({"metadata": {"scales": "9"}}, "from 0.1 to 4"),
        ({"metadata": {"max_faces": "1"}}, "scales, max_matches, max_overlap, match_on"),
    ],
)
def test_templates_that_are_refused(vision: Vision, changes: dict[str, Any], words: str) -> None:
    (image,) = person(1)
    (request,) = matching([image], template_of(image))
    for name, value in changes.items():
        if name == "metadata":
            request.metadata.update(value)
        else:
            setattr(request, name, value)
    error = error_of(vision.stub.StreamTemplateMatching(iter([request])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert words in error.details()


def walking(frames: int = 40) -> tuple[list[np.ndarray], np.ndarray]:
    """The astronaut walks from left to right before a wall; the middles of the face."""
    portrait = vision_clips.astronaut()[:300, 80:380]
    images, middles = [], np.linspace(170, 470, frames)
    wall = np.tile(np.linspace(90, 150, 640).astype(np.uint8)[None, :, None], (360, 1, 3))
    for middle in middles:
        image, left = wall.copy(), round(middle) - 143  # the face is 143 from the portrait's edge
        image[60:, max(0, left) : left + 300] = portrait[:, max(0, -left) : 640 - left]
        images.append(image)
    return images, middles


@pytest.mark.parametrize("name", ["jpeg", "nv12"])
@pytest.mark.parametrize("look_ahead", ["0", "6"])
def test_auto_flip_keeps_a_walking_person(vision: Vision, name: str, look_ahead: str) -> None:
    images, middles = walking()
    messages, _ = encode_clip(images, name)
    messages[0].metadata.update({"subjects": "faces", "look_ahead": look_ahead})
    answers = list(vision.stub.StreamAutoFlip(iter(messages)))
    assert [answer.frame_number for answer in answers] == list(range(len(images)))
    for answer, message, middle in zip(answers, messages, middles, strict=True):
        left = int(answer.metadata["crop_x"])
        assert left + 30 < middle < left + 202 - 30
        assert (answer.width, answer.height, answer.format) == (202, 360, name)
        assert answer.timestamp_ms == message.timestamp_ms
        assert answer.timing.inference_ms > 0
        sent = decoded(message)[:, left : left + 202].astype(int)
        assert np.abs(decoded(answer).astype(int) - sent).mean() < (3 if name == "jpeg" else 0.01)
    assert {answer.metadata["shot"] for answer in answers} == {"0"}


def decoded(frame: pb.VideoFrame) -> np.ndarray:
    encoded = EncodedFrame(frame.frame_data, frame.format, frame.width, frame.height)
    return decode_picture(encoded, Limits()).image


def test_auto_flip_of_h264_answers_in_jpeg(vision: Vision) -> None:
    messages, _ = encode_clip(walking(12)[0], "h264")
    messages[0].metadata.update({"subjects": "faces", "look_ahead": "3", "aspect": "1:1"})
    answers = list(vision.stub.StreamAutoFlip(iter(messages)))
    assert sorted(answer.frame_number for answer in answers) == list(range(12))
    assert {answer.format for answer in answers} == {"jpeg"}
    assert all(decoded(answer).shape == (360, 360, 3) for answer in answers)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aspect": "9x16"}, "option aspect must be two whole numbers"),
        ({"look_ahead": "31"}, "from 0 to 30"),
        ({"camera": "handheld"}, "smooth, still"),
        ({"threshold": "1"}, "aspect, camera, look_ahead"),
        ({"jpeg_quality": "0"}, "from 1 to 100"),
    ],
)
def test_auto_flip_options_that_are_refused(
    vision: Vision, changes: dict[str, str], words: str
) -> None:
    (message,), _ = encode_clip(person(1), "jpeg")
    message.metadata.update(changes)
    error = error_of(vision.stub.StreamAutoFlip(iter([message])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in error.details()


def test_auto_flip_answers_the_frames_before_a_bad_one(vision: Vision) -> None:
    messages, _ = encode_clip(walking(8)[0], "jpeg")
    messages[0].metadata.update({"subjects": "faces", "look_ahead": "5"})
    messages[7].frame_data = b"\xff\xd8\xff nothing"
    answered = []
    with pytest.raises(grpc.RpcError) as raised:
        for answer in vision.stub.StreamAutoFlip(iter(messages)):
            answered.append(answer.frame_number)  # noqa: PERF401
    assert answered == list(range(7))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "frame_number 7" in raised.value.details()


def film() -> tuple[list[pb.MediaSequenceFrame], list[int]]:
    """Three shots: the astronaut, coffee and the astronaut again; where the shots begin."""
    shots = [
        list(vision_clips.moving(vision_clips.astronaut(), 24)),
        list(vision_clips.moving(vision_clips.coffee(), 20)),
        list(vision_clips.moving(vision_clips.astronaut(), 18)),
    ]
    frames = []
    for number, image in enumerate(image for shot in shots for image in shot):
        data = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
        frames.append(
            pb.MediaSequenceFrame(
                frame_data=data,
                timestamp_ms=number * 40,
                frame_number=number + 100,
                features={"loudness": number / 10},
            )
        )
    frames[0].metadata.update({"subjects": "faces", "sample_every": "4"})
    return frames, [100, 124, 144, 162]


def test_a_media_sequence(vision: Vision) -> None:
    frames, starts = film()
    response = vision.stub.ProcessMediaSequence(iter(frames))
    shots = [label for label in response.labels if label.label == "shot"]
    assert [shot.start_frame for shot in shots] == starts[:-1]
    assert [shot.end_frame + 1 for shot in shots] == starts[1:]
    faces = [label for label in response.labels if label.label == "face"]
    assert [(face.start_frame, face.end_frame) for face in faces] == [(100, 120), (144, 160)]
    assert all(0.5 < face.confidence <= 1.0 for face in faces)
    assert response.features["loudness_mean"] == pytest.approx(3.05)
    assert (response.features["loudness_min"], response.total_frames) == (0.0, 62)
    assert response.features["loudness_max"] == pytest.approx(6.1)


def test_a_media_sequence_of_raw_frames(vision: Vision) -> None:
    images = person(3)
    frames = [
        pb.MediaSequenceFrame(frame_data=image.tobytes(), width=640, height=480, format=name)
        for image, name in zip(images, ("rgb", "", "bgr"), strict=True)
    ]
    call = [("vision-subjects", "faces"), ("vision-sample-every", "1")]
    response = vision.stub.ProcessMediaSequence(iter(frames), metadata=call)
    found = [(label.label, label.start_frame, label.end_frame) for label in response.labels]
    assert found == [("shot", 0, 2), ("face", 0, 2)]


def test_a_media_sequence_without_frames(vision: Vision) -> None:
    response = vision.stub.ProcessMediaSequence(iter([]))
    assert (response.total_frames, list(response.labels)) == (0, [])


@pytest.mark.parametrize(
    ("change", "policy", "words"),
    [
        ({"frame_data": b""}, "every", "frame 2 of the stream (frame_number 101): frame_data is"),
        ({"frame_data": b"GIF89a"}, "every", "must be a jpeg, png or webp picture"),
        ({"frame_data": b"\xff\xd8\xff123"}, "every", "not a complete jpeg picture"),
        ({}, "latest", "frame-policy must be every for media-sequence"),
    ],
)
def test_media_sequences_that_are_refused(
    vision: Vision, change: dict[str, Any], policy: str, words: str
) -> None:
    frames = film()[0][:3]
    for name, value in change.items():
        setattr(frames[1], name, value)
    with pytest.raises(grpc.RpcError) as raised:
        vision.stub.ProcessMediaSequence(iter(frames), metadata=[("frame-policy", policy)])
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in raised.value.details()
