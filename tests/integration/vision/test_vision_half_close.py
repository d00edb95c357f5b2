"""Frames after the half-close, written by hand because no client library sends them."""

from __future__ import annotations

import struct

from ml import mediapipe_pb2 as pb
from ml import mediapipe_pb2_grpc
from tests.integration.vision.conftest import Vision
from tests.support.http2 import DATA, END_STREAM, GOAWAY, RawConnection
from tests.support.stack import VISION, Stack, wait_for
from tools import vision_clips

PATH = "/ml.MediapipeService/StreamFaceDetection"
# So small that the server reads two such frames at once.
IMAGE = vision_clips.astronaut()[::32, ::32]
FRAME = pb.VideoFrame(
    frame_data=IMAGE.tobytes(), format="rgb", width=IMAGE.shape[1], height=IMAGE.shape[0]
).SerializeToString()
STREAM_CLOSED = 0x5


def answers_of(connection: RawConnection, stream: int) -> list[pb.FaceDetectionResponse]:
    """All answers of a call."""
    data = b""
    for frame in connection.frames():
        if frame.stream == stream:
            data += frame.payload if frame.kind == DATA else b""
            if frame.ends_stream:
                break
    else:
        raise AssertionError("the connection ended before the call")
    answers = []
    while data:
        (length,) = struct.unpack(">I", data[1:5])
        answers.append(pb.FaceDetectionResponse.FromString(data[5 : 5 + length]))
        data = data[5 + length :]
    return answers


def call_with_a_late_frame(connection: RawConnection, stream: int) -> None:
    connection.open_call(stream, PATH)
    with connection.one_write():
        connection.send_message(stream, FRAME, flags=END_STREAM)
        connection.send_message(stream, FRAME)


def test_the_service_drops_them_and_serves_on(vision: Vision) -> None:
    received = vision.metric("vision_frames_received_total", task="face-detection")
    with RawConnection(vision.address) as connection:
        for stream in (1, 3):  # the connection stays open
            call_with_a_late_frame(connection, stream)
            assert len(answers_of(connection, stream)) == 1
    now = vision.metric("vision_frames_received_total", task="face-detection")
    assert now - received == 2
    wait_for("the end of all streams", lambda: vision.metric("vision_open_streams") == 0)
    assert len(list(vision.stub.StreamFaceDetection(iter([pb.VideoFrame.FromString(FRAME)])))) == 1


def test_envoy_ends_the_connection_and_serves_on(stack: Stack) -> None:
    stack.wait_serving([VISION])
    with RawConnection(stack.addresses["envoy"]) as connection:
        call_with_a_late_frame(connection, 1)
        frames = list(connection.frames())  # until Envoy closes it
    assert not [frame for frame in frames if frame.kind == DATA]
    # The reason may be lost if the connection is reset.
    reasons = [int.from_bytes(frame.payload[4:8]) for frame in frames if frame.kind == GOAWAY]
    assert reasons in ([STREAM_CLOSED], [])
    with stack.channel() as channel:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        one = iter([pb.VideoFrame.FromString(FRAME)])
        assert len(list(stub.StreamFaceDetection(one))) == 1
