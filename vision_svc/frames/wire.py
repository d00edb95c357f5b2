"""How frames are read off the wire: what is large is not copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import grpc

from ml import mediapipe_pb2 as pb
from ml import mediapipe_pb2_grpc
from shared.wire.leading import leading_bytes

# The tag of VideoFrame.frame_data: field 1, a length and that many bytes.
_DATA_TAG = 0x0A


class ReceivedFrame(NamedTuple):
    """A VideoFrame whose data lies where gRPC has put it.

    Protobuf would copy it twice, and a raw frame of 640 x 480 is 0.9 MB.
    """

    fields: pb.VideoFrame
    data: bytes | memoryview


def read_frame(message: bytes) -> ReceivedFrame:
    """Reads a VideoFrame.

    Its first field comes first from every encoder that is known; a message in another order, or in
    pieces, is read all the same.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no VideoFrame.
    """
    begin, end = leading_bytes(message, _DATA_TAG)
    rest = message[end:]
    if not end or _DATA_TAG in rest:  # perhaps data once more, and the last value counts
        fields = pb.VideoFrame.FromString(message)
        return ReceivedFrame(fields, fields.frame_data)
    return ReceivedFrame(pb.VideoFrame.FromString(rest), memoryview(message)[begin:end])


class _Handlers:
    """Takes the handlers that generated code would give to a server."""

    def __init__(self) -> None:
        self.by_method: Mapping[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        pass  # the same ones again

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.by_method = handlers


def add_servicer(
    servicer: mediapipe_pb2_grpc.MediapipeServiceServicer, name: str, server: grpc.aio.Server
) -> None:
    """Registers a servicer whose streams get `ReceivedFrame` in place of VideoFrame."""
    generated = _Handlers()
    mediapipe_pb2_grpc.add_MediapipeServiceServicer_to_server(servicer, generated)
    handlers = {
        method: handler._replace(request_deserializer=read_frame)
        if handler.request_deserializer == pb.VideoFrame.FromString
        else handler
        for method, handler in generated.by_method.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
