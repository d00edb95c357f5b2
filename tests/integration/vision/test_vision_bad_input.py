"""Hostile and broken frames: each is refused with a reason, and the next call is served."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from tests.integration.vision.conftest import Vision
from tests.support.vision_frames import encode_clip, encode_still, encode_video, rgb_frames
from tools import vision_clips

BAD = grpc.StatusCode.INVALID_ARGUMENT
LARGE = grpc.StatusCode.RESOURCE_EXHAUSTED
IMAGE = vision_clips.drawn_hand()[:240, :320].copy()
PIXELS = IMAGE.tobytes()


def png_of_zeros(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header states any size and whose rows are `data`."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = bytearray(encode_still(IMAGE, "jpeg")[0])
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_that_claims(width: int, height: int) -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def half(name: str) -> bytes:
    data, _ = encode_still(IMAGE, name)
    return data[: len(data) // 2]


FRAMES = {
    "nothing": (pb.VideoFrame(), BAD),
    "no format": (pb.VideoFrame(frame_data=PIXELS, width=320, height=240), BAD),
    "no data": (pb.VideoFrame(format="rgb", width=320, height=240), BAD),
    "unknown format": (pb.VideoFrame(frame_data=PIXELS, format="tiff"), BAD),
    "no size": (pb.VideoFrame(frame_data=PIXELS, format="rgb"), BAD),
    "zero width": (pb.VideoFrame(frame_data=PIXELS, format="rgb", width=0, height=240), BAD),
    "negative": (pb.VideoFrame(frame_data=PIXELS, format="rgb", width=-320, height=-240), BAD),
    "absurd": (
        pb.VideoFrame(frame_data=PIXELS, format="rgb", width=2**31 - 1, height=2**31 - 1),
        LARGE,
    ),
    "too wide": (
        pb.VideoFrame(frame_data=b"1" * 60_000, format="gray", width=60_000, height=1),
        LARGE,
    ),
    "one byte short": (
        pb.VideoFrame(frame_data=PIXELS[1:], format="rgb", width=320, height=240),
        BAD,
    ),
    "one byte long": (
        pb.VideoFrame(frame_data=PIXELS + b"1", format="bgr", width=320, height=240),
        BAD,
    ),
    "swapped channels": (
        pb.VideoFrame(frame_data=PIXELS, format="rgba", width=320, height=240),
        BAD,
    ),
    "odd yuv420": (pb.VideoFrame(frame_data=b"1" * 13, format="yuv420", width=3, height=3), BAD),
    "odd nv12": (pb.VideoFrame(frame_data=b"1" * 12, format="nv12", width=4, height=3), BAD),
    "half a jpeg": (pb.VideoFrame(frame_data=half("jpeg"), format="jpeg"), BAD),
    "half a png": (pb.VideoFrame(frame_data=half("png"), format="png"), BAD),
    "half a webp": (pb.VideoFrame(frame_data=half("webp"), format="webp"), BAD),
    "a png called jpeg": (
        pb.VideoFrame(frame_data=encode_still(IMAGE, "png")[0], format="jpeg"),
        BAD,
    ),
    "png bomb": (pb.VideoFrame(frame_data=png_of_zeros(50_000, 50_000), format="png"), LARGE),
    "png of no size": (pb.VideoFrame(frame_data=png_of_zeros(0, 10), format="png"), BAD),
    "png without rows": (pb.VideoFrame(frame_data=png_of_zeros(500, 500), format="png"), BAD),
    "jpeg bomb": (pb.VideoFrame(frame_data=jpeg_that_claims(65_500, 65_500), format="jpeg"), LARGE),
    "webp bomb": (pb.VideoFrame(frame_data=webp_that_claims(2**24, 2**24), format="webp"), LARGE),
    "jpeg of many scans": (
        pb.VideoFrame(
            frame_data=encode_still(IMAGE, "jpeg")[0][:-2] + b"\xff\xda" * 5000 + b"\xff\xd9",
            format="jpeg",
        ),
        LARGE,
    ),
    "noise as jpeg": (pb.VideoFrame(frame_data=os.urandom(5000), format="jpeg"), BAD),
    "noise as h264": (pb.VideoFrame(frame_data=os.urandom(5000), format="h264"), BAD),
    "an empty slice": (pb.VideoFrame(frame_data=b"\0\0\1\x65" + b"1" * 900, format="h264"), BAD),
    "noise as vp8": (pb.VideoFrame(frame_data=b"\x01" + os.urandom(900), format="vp8"), BAD),
    "vp8 bomb": (
        pb.VideoFrame(
            frame_data=b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383) + b"1" * 90,
            format="vp8",
        ),
        LARGE,
    ),
}


def serves(vision: Vision) -> bool:
    """Whether the next call is answered."""
    (answer,) = vision.stub.StreamFaceDetection(rgb_frames([vision_clips.astronaut()]))
    return len(answer.faces) == 1


@pytest.mark.parametrize("name", FRAMES)
def test_a_bad_first_frame(vision: Vision, name: str) -> None:
    frame, code = FRAMES[name]
    rss = vision.rss()
    with pytest.raises(grpc.RpcError) as raised:
        list(vision.stub.StreamFaceDetection(iter([frame])))
    assert raised.value.code() is code
    assert raised.value.details().startswith("frame 1 of the stream (frame_number 0): ")
    assert vision.rss() - rss < 50 << 20
    assert serves(vision)


@pytest.mark.parametrize(
    "name", [n for n, (f, _) in FRAMES.items() if f.format not in ("h264", "vp8")]
)
def test_a_bad_picture(vision: Vision, name: str) -> None:
    frame, code = FRAMES[name]
    with pytest.raises(grpc.RpcError) as raised:
        vision.stub.DetectFaces(
            pb.ImageRequest(
                image_data=frame.frame_data,
                format=frame.format,
                width=frame.width,
                height=frame.height,
            )
        )
    assert raised.value.code() is code
    assert "frame_data" not in raised.value.details()


def test_a_video_is_no_picture(vision: Vision) -> None:
    packets, _ = encode_video([vision_clips.drawn_hand()], "h264")
    with pytest.raises(grpc.RpcError) as raised:
        vision.stub.DetectFaces(pb.ImageRequest(image_data=packets[0][1], format="h264"))
    assert raised.value.code() is BAD


@pytest.mark.parametrize("name", ["half a jpeg", "png bomb", "one byte short", "noise as h264"])
def test_a_bad_frame_in_the_middle(vision: Vision, name: str) -> None:
    """The frames before it are answered; the message and the details name the frame."""
    good = list(rgb_frames(vision_clips.moving(vision_clips.astronaut(), 6)))
    bad, code = FRAMES[name]
    broken = pb.VideoFrame()
    broken.CopyFrom(bad)
    broken.frame_number = 77
    answers = []
    with pytest.raises(grpc.RpcError) as raised:
        for answer in vision.stub.StreamFaceDetection(iter([*good[:3], broken, *good[3:]])):
            answers.append(answer)  # noqa: PERF402 - what came before the error counts
    assert raised.value.code() is code
    assert "frame 4 of the stream (frame_number 77)" in raised.value.details()
    assert [answer.frame_number for answer in answers] == [0, 1, 2]
    assert serves(vision)


@pytest.mark.parametrize("name", ["h264", "vp8"])
def test_a_damaged_frame_in_a_video(vision: Vision, name: str) -> None:
    messages, _ = encode_clip(list(vision_clips.moving(vision_clips.astronaut(), 12)), name)
    data = messages[6].frame_data
    messages[6].frame_data = data[: len(data) // 3]
    if name == "vp8":  # its decoder conceals missing data, but refuses a bad header
        messages[6].frame_data = b"\x00"
    with pytest.raises(grpc.RpcError) as raised:
        list(vision.stub.StreamFaceDetection(iter(messages)))
    assert raised.value.code() is BAD
    assert serves(vision)


@pytest.mark.parametrize("policy", ["every", "latest"])
def test_a_video_that_begins_between_key_frames(vision: Vision, policy: str) -> None:
    """Each frame is answered as skipped, one after the other, until a key frame comes."""
    clip = list(vision_clips.moving(vision_clips.astronaut(), 12))
    packets, _ = encode_video(clip, "h264", **{"x264-params": "keyint=8:bframes=0:scenecut=0"})
    messages = [
        pb.VideoFrame(frame_data=data, format="h264", frame_number=number, timestamp_ms=number * 40)
        for number, (_, data) in enumerate(packets)
    ][4:]
    skipped_before = vision.metric(
        "vision_frames_skipped_total", task="face-detection", reason="waiting_for_key_frame"
    )
    answered = threading.Semaphore(1)

    def lock_step() -> Iterator[pb.VideoFrame]:
        for message in messages:
            assert answered.acquire(timeout=60)
            yield message

    answers = []
    metadata = [("frame-policy", policy)]
    for answer in vision.stub.StreamFaceDetection(lock_step(), metadata=metadata):
        answers.append(answer)
        answered.release()
    assert [answer.frame_number for answer in answers] == list(range(4, 12))
    assert [answer.timestamp_ms for answer in answers] == [number * 40 for number in range(4, 12)]
    waiting = pb.SKIP_REASON_WAITING_FOR_KEY_FRAME
    assert [answer.skipped for answer in answers] == [waiting] * 4 + [0] * 4
    assert [len(answer.faces) for answer in answers] == [0] * 4 + [1] * 4
    assert answers[0].skip_message == "no key frame has arrived yet"
    skipped = vision.metric(
        "vision_frames_skipped_total", task="face-detection", reason="waiting_for_key_frame"
    )
    assert skipped - skipped_before == 4


def test_bad_frames_are_skipped_if_the_caller_asks(vision: Vision) -> None:
    good = list(rgb_frames(vision_clips.moving(vision_clips.astronaut(), 6)))
    bad = []
    for name in ("half a jpeg", "one byte short", "unknown format", "png bomb"):
        bad.append(pb.VideoFrame())
        bad[-1].CopyFrom(FRAMES[name][0])
    frames = [good[0], bad[0], good[1], *bad[1:], *good[2:]]
    for number, frame in enumerate(frames):
        frame.frame_number = number
    answers = list(
        vision.stub.StreamFaceMesh(iter(frames), metadata=[("vision-on-bad-frame", "skip")])
    )
    assert [answer.frame_number for answer in answers] == list(range(10))
    skipped = [answer.frame_number for answer in answers if answer.skipped]
    assert skipped == [1, 3, 4, 5]
    assert {answer.skipped for answer in answers} == {0, pb.SKIP_REASON_BAD_FRAME}
    assert "frame 2 of the stream (frame_number 1)" in answers[1].skip_message
    assert all(bool(answer.faces) != bool(answer.skipped) for answer in answers)


def test_endless_parameter_sets(vision: Vision) -> None:
    headers = pb.VideoFrame(frame_data=b"\0\0\1\x67" + b"1" * 1000, format="h264")
    with pytest.raises(grpc.RpcError) as raised:
        list(vision.stub.StreamFaceDetection(iter([headers] * 200)))
    assert raised.value.code() is BAD


@pytest.mark.parametrize("score", ["0", "-0", "1e-60", "1"])
@pytest.mark.parametrize(
    "rpc",
    [
        *("StreamFaceDetection", "StreamFaceMesh", "StreamIrisTracking", "StreamHandTracking"),
        *("StreamPoseTracking", "StreamHolisticTracking"),
    ],
)
def test_thresholds_at_their_ends(vision: Vision, rpc: str, score: str) -> None:
    """MediaPipe aborts the process if hands need an overlap of 0."""
    names = ["min_detection_confidence"]
    if rpc != "StreamFaceDetection":
        names.append("min_presence_confidence")
    if rpc not in ("StreamFaceDetection", "StreamHolisticTracking"):
        names.append("min_tracking_confidence")
    messages = list(rgb_frames([IMAGE] * 3))
    messages[0].metadata.update(dict.fromkeys(names, score))
    assert len(list(getattr(vision.stub, rpc)(iter(messages)))) == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 600), (600, 1), (2, 2), (7, 5000)])
@pytest.mark.parametrize(
    "rpc",
    [
        *("StreamFaceDetection", "StreamFaceMesh", "StreamIrisTracking", "StreamHandTracking"),
        *("StreamPoseTracking", "StreamHolisticTracking"),
        *("StreamSelfieSegmentation", "StreamHairSegmentation"),
        *("StreamObjectDetection", "StreamObjectTracking", "StreamObjectDetection3D"),
    ],
)
def test_pictures_of_odd_shapes(vision: Vision, rpc: str, size: tuple[int, int]) -> None:
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    answers = list(getattr(vision.stub, rpc)(rgb_frames([image] * 2)))
    assert len(answers) == 2


def test_noise_as_pictures_grows_nothing(vision: Vision) -> None:
    def noise() -> Iterator[pb.VideoFrame]:
        for number in range(60):
            image = np.random.default_rng(number).integers(0, 256, (480, 640, 3), np.uint8)
            yield from rgb_frames([image])

    assert len(list(vision.stub.StreamFaceMesh(noise()))) == 60
    rss = vision.rss()
    assert len(list(vision.stub.StreamFaceMesh(noise()))) == 60
    assert vision.rss() - rss < 50 << 20
