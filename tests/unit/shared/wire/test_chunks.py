"""Chunks serialised by hand are the messages that protobuf makes."""

from __future__ import annotations

import pytest

from ml.model_management_pb2 import ModelFileChunk
from shared.wire.chunks import EncodedChunk


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 102_400, 4_000_000])
def test_they_are_the_messages_of_protobuf(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    fields = {
        "offset": 1 << 40,
        "total_size": (1 << 40) + size,
        "is_last": True,
        "sha256": "ab" * 32,
        "revision": "refs/pr/1",
    }
    encoded = EncodedChunk(memoryview(data)[:size], **fields)
    assert ModelFileChunk.FromString(encoded.serialized) == ModelFileChunk(
        data=data[:size], **fields
    )
    assert encoded.is_last


def test_what_is_not_set_is_not_sent() -> None:
    assert EncodedChunk(b"", 0, 0, False).serialized == b""
