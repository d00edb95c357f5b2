"""Frames are read as protobuf would read them, without its copies."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import mediapipe_pb2 as pb
from vision_svc.frames.wire import frame_reader, read_frame

REST = pb.VideoFrame(format="rgb", width=20, height=11, timestamp_ms=-5, frame_number=7)
FRAME = pb.VideoFrame(frame_data=b"pixels" * 100)
FRAME.MergeFrom(REST)


def test_data_is_a_view_of_the_message() -> None:
    message = FRAME.SerializeToString()
    frame = read_frame(message)
    assert isinstance(frame.data, memoryview)
    assert frame.data.obj is message
    assert frame.data == FRAME.frame_data
    assert frame.fields == REST


def test_a_frame_with_options() -> None:
    message = pb.VideoFrame(frame_data=b"pixels", metadata={"max_faces": "2"}).SerializeToString()
    frame = read_frame(message)
    assert frame.data == b"pixels"
    assert dict(frame.fields.metadata) == {"max_faces": "2"}


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 921_600, 3_000_000])
def test_every_length_of_the_length_field(size: int) -> None:
    frame = read_frame(pb.VideoFrame(frame_data=b"\x0a" * size, width=1).SerializeToString())
    assert bytes(frame.data) == b"\x0a" * size
    assert frame.fields == pb.VideoFrame(width=1)


def test_no_data() -> None:
    for message in (REST.SerializeToString(), b"", b"\x0a\x00" + REST.SerializeToString()):
        frame = read_frame(message)
        assert not frame.data
        assert frame.fields == pb.VideoFrame.FromString(message)


def test_data_after_the_other_fields() -> None:
    data = pb.VideoFrame(frame_data=FRAME.frame_data).SerializeToString()
    assert read_frame(REST.SerializeToString() + data).data == FRAME.frame_data


def test_the_last_of_several_values_counts() -> None:
    first = pb.VideoFrame(frame_data=b"first").SerializeToString()
    assert read_frame(first + FRAME.SerializeToString()).data == FRAME.frame_data
    assert read_frame(FRAME.SerializeToString() + b"\x0a\x00").data == b""


@pytest.mark.parametrize(
    "message",
    [FRAME.SerializeToString()[:300], b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff", b"\x0a\xff"],
)
def test_truncated_messages_are_refused(message: bytes) -> None:
    with pytest.raises(DecodeError):
        read_frame(message)


@settings(derandomize=True)
@given(st.binary(max_size=40), st.booleans())
def test_any_bytes_are_read_as_protobuf_reads_them(message: bytes, begins_with_data: bool) -> None:
    if begins_with_data:
        message = b"\x0a" + message
    try:
        expected = pb.VideoFrame.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_frame(message)
        return
    frame = read_frame(message)
    assert frame.data == expected.frame_data
    expected.ClearField("frame_data")
    frame.fields.ClearField("frame_data")
    assert frame.fields == expected


@pytest.mark.parametrize(
    "message",
    [
        FRAME,
        pb.TemplateMatchingRequest(frame_data=b"pixels", template_data=b"\x0a1", threshold=0.5),
        pb.MediaSequenceFrame(frame_data=b"pixels", features={"loudness": 0.5}),
    ],
)
def test_each_message_with_a_frame_has_its_reader(message: pb.VideoFrame) -> None:
    reader = frame_reader(type(message).FromString)
    assert reader is not None
    frame = reader(message.SerializeToString())
    assert bytes(frame.data) == message.frame_data
    assert type(frame.fields) is type(message)
    frame.fields.frame_data = message.frame_data
    assert frame.fields == message


def test_other_messages_have_none() -> None:
    assert frame_reader(pb.ImageRequest.FromString) is None
