"""Reads video frames from serialised messages without copying their data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ml import mediapipe_pb2 as pb
from shared.wire.leading import leading_bytes

# Messages with a frame, whose bytes are their first field, frame_data.
_KINDS = (pb.VideoFrame, pb.TemplateMatchingRequest, pb.MediaSequenceFrame)
# The tag of frame_data: field 1, a length and that many bytes.
_DATA_TAG = 0x0A


class ReceivedFrame(NamedTuple):
    """A message with a frame, whose data is a view of what was received.

    Protobuf would copy it twice, and a raw frame of 640 x 480 is 0.9 MB.
    """

    fields: Any
    data: bytes | memoryview


def read_frame(message: bytes, kind: Any = pb.VideoFrame) -> ReceivedFrame:
    """Parses a message with a frame.

    All known encoders write its first field, the data, first. A message in another order, or with
    the data more than once, is read by protobuf.

    Raises:
        google.protobuf.message.DecodeError: the message is not of this kind.
    """
    begin, end = leading_bytes(message, _DATA_TAG)
    rest = message[end:]
    if not end or _DATA_TAG in rest:  # perhaps the data again: the last value counts
        fields = kind.FromString(message)
        return ReceivedFrame(fields, fields.frame_data)
    return ReceivedFrame(kind.FromString(rest), memoryview(message)[begin:end])


def frame_reader(deserializer: Any) -> Callable[[bytes], ReceivedFrame] | None:
    """What reads a frame's message in place of protobuf's function; None for other messages."""
    for kind in _KINDS:
        if deserializer == kind.FromString:
            return partial(read_frame, kind=kind)
    return None
