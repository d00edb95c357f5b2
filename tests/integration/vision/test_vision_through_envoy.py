"""The calls of the vision service through the whole stack."""

from __future__ import annotations

import grpc
import pytest

from ml import mediapipe_pb2 as pb
from ml import mediapipe_pb2_grpc
from tests.integration.vision.encoding import encode_clip, encode_still
from tests.integration.vision.reference import REFERENCES
from tests.support.stack import Stack
from tools import vision_clips


@pytest.mark.parametrize("task", REFERENCES)
def test_streams(stack: Stack, task: str) -> None:
    images = (
        list(vision_clips.moving_hand(8))
        if task == "hands"
        else list(vision_clips.moving(vision_clips.astronaut(), 8))
    )
    messages, _ = encode_clip(images, "jpeg")
    with stack.channel() as channel:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        answers = list(getattr(stub, REFERENCES[task].rpc)(iter(messages)))
    assert [answer.frame_number for answer in answers] == list(range(8))
    assert all(answer.ByteSize() > 200 for answer in answers)


@pytest.mark.parametrize("rpc", ["DetectFaces", "DetectHands", "DetectPose"])
def test_pictures(stack: Stack, rpc: str) -> None:
    image = vision_clips.drawn_hand() if rpc == "DetectHands" else vision_clips.astronaut()
    data, _ = encode_still(image, "jpeg")
    with stack.channel() as channel:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        answer = getattr(stub, rpc)(pb.ImageRequest(image_data=data, format="jpeg"))
    assert answer.ByteSize() > 100


def test_a_large_raw_frame_fits(stack: Stack) -> None:
    """1080p in rgb is 6 MB, over gRPC's own default of 4 MiB, and so are some masks."""
    (image,) = vision_clips.moving(vision_clips.astronaut(), 1, 3840, 2160)
    messages, _ = encode_clip([image], "rgb")
    with stack.channel() as channel:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        (answer,) = stub.StreamSelfieSegmentation(iter(messages))
    assert len(answer.mask) == 3840 * 2160


def test_what_is_refused_keeps_its_status(stack: Stack) -> None:
    with stack.channel() as channel:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        for call, code in (
            (stub.StreamFaceMesh(iter([pb.VideoFrame(format="rgb")])), "INVALID_ARGUMENT"),
            (stub.StreamAutoFlip(iter([pb.VideoFrame()])), "UNIMPLEMENTED"),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                list(call)
            assert raised.value.code() is grpc.StatusCode[code]
            trailers = dict(raised.value.trailing_metadata())
            assert "grpc-status-details-bin" in trailers
