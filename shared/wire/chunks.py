"""Chunks of a model file as serialised messages, made with one copy of the data."""

from __future__ import annotations

from ml.model_management_pb2 import ModelFileChunk

# The first byte of a message that begins with `data`: field 1, bytes.
_DATA_TAG = 0x0A
_VARINT_LIMIT = 0x80


class EncodedChunk:
    """A `ModelFileChunk` that is serialised already.

    Args:
        data: its bytes, which are copied.
        offset, total_size, is_last, sha256, revision: its other fields.

    Attributes:
        serialized: the whole message.
        is_last: its field.
    """

    __slots__ = ("is_last", "serialized")

    def __init__(
        self,
        data: bytes | memoryview,
        offset: int,
        total_size: int,
        is_last: bool,
        sha256: str = "",
        revision: str = "",
    ) -> None:
        rest = ModelFileChunk(
            offset=offset,
            total_size=total_size,
            is_last=is_last,
            sha256=sha256,
            revision=revision,
        ).SerializeToString()
        head = bytes((_DATA_TAG, *_varint(len(data)))) if data else b""
        self.serialized = b"".join((head, data, rest))
        self.is_last = is_last


def _varint(number: int) -> list[int]:
    digits = []
    while number >= _VARINT_LIMIT:
        digits.append(number & 0x7F | _VARINT_LIMIT)
        number >>= 7
    return [*digits, number]
