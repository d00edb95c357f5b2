"""The calls of the vision service through the whole stack."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from ml import common_pb2, mediapipe_pb2_grpc, model_management_pb2, model_management_pb2_grpc
from ml import mediapipe_pb2 as pb
from tests.integration.vision.reference import REFERENCES, clip_for
from tests.support.providers import Provider
from tests.support.stack import MODEL_MGMT, VISION, Stack
from tests.support.vision_frames import encode_clip, encode_still
from tools import vision_clips


@pytest.mark.parametrize("task", REFERENCES)
def test_streams(stack: Stack, task: str) -> None:
    messages, _ = encode_clip(clip_for(task, 8), "jpeg")
    messages[0].metadata.update(REFERENCES[task].options_sent)
    with stack.channel() as channel:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        answers = list(getattr(stub, REFERENCES[task].rpc)(iter(messages)))
    assert [answer.frame_number for answer in answers] == list(range(8))
    least = 40 if task in ("objects", "tracks") else 200
    assert all(answer.ByteSize() > least for answer in answers)


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
            (stub.StreamAutoFlip(iter([pb.VideoFrame()])), "INVALID_ARGUMENT"),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                list(call)
            assert raised.value.code() is grpc.StatusCode[code]
            trailers = dict(raised.value.trailing_metadata())
            assert "grpc-status-details-bin" in trailers


async def test_the_application_brings_its_own_model(
    private_stack: Callable[..., Stack], models: Path
) -> None:
    """From the application's model cache to the answers of the task, by LoadModel alone."""
    model_id, asset = "app/faces", "blaze_face_full_range_sparse.tflite"
    content = (models / "vision" / asset).read_bytes()
    data, _ = encode_still(vision_clips.astronaut(), "jpeg")
    picture = pb.ImageRequest(image_data=data, format="jpeg")

    def use(stack: Stack) -> tuple[pb.FaceDetectionResponse, pb.FaceDetectionResponse]:
        stack.wait_listening()
        stack.wait_serving([MODEL_MGMT, VISION])
        with stack.channel() as channel:
            vision = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
            life = model_management_pb2_grpc.ModelManagementServiceStub(channel)
            before = vision.DetectFaces(picture)
            loaded = life.LoadModel(
                model_management_pb2.LoadModelRequest(
                    model_id=model_id, pipeline_type="face-detection", options={"file": asset}
                )
            )
            assert loaded.success, loaded.message
            (listed,) = life.GetLoadedModels(common_pb2.EmptyRequest()).models
            assert (listed.model_id, listed.pipeline_type) == (model_id, "face-detection")
            return before, vision.DetectFaces(picture)

    async with Provider({f"{model_id}/{asset}": content}).running() as provider:
        stack = private_stack("--provider", provider.address)
        before, after = await asyncio.to_thread(use, stack)
        assert provider.asked_for(f"{model_id}/{asset}")
    # Another detector sees the same face, in a box and with a score of its own.
    assert len(before.faces) == len(after.faces) == 1
    assert before.faces[0].confidence != after.faces[0].confidence
