"""Reads video frames from serialised messages without copying their data."""

from __future__ import annotations

from typing import NamedTuple

from ml import mediapipe_pb2 as pb
from shared.wire.leading import leading_bytes

# The tag of VideoFrame.frame_data: field 1, a length and that many bytes.
_DATA_TAG = 0x0A


class ReceivedFrame(NamedTuple):
    """A VideoFrame whose data is a view of the received message.

    Protobuf would copy it twice, and a raw frame of 640 x 480 is 0.9 MB.
    """

    fields: pb.VideoFrame
    data: bytes | memoryview


def read_frame(message: bytes) -> ReceivedFrame:
    """Parses a VideoFrame.

    All known encoders write its first field, the data, first. A message in another order, or with
    the data more than once, is read by protobuf.

    Raises:
        google.protobuf.message.DecodeError: the message is not a VideoFrame.
    """
    begin, end = leading_bytes(message, _DATA_TAG)
    rest = message[end:]
    if not end or _DATA_TAG in rest:  # perhaps the data again: the last value counts
        fields = pb.VideoFrame.FromString(message)
        return ReceivedFrame(fields, fields.frame_data)
    return ReceivedFrame(pb.VideoFrame.FromString(rest), memoryview(message)[begin:end])
