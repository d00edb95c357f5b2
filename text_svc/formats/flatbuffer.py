"""A reader of FlatBuffers that came from a stranger: whatever they say, it stays inside them.

The format is described at https://flatbuffers.dev/internals/. LiteRT's files are FlatBuffers.
"""

from __future__ import annotations

import mmap
import struct

Buffer = bytes | mmap.mmap

# Most elements of a vector, and bytes of a text, that are read.
MAX_ELEMENTS = 1 << 16


class BrokenBufferError(ValueError):
    """A FlatBuffer says something that cannot be."""


class Table:
    """One table of a FlatBuffer.

    Args:
        buffer: the whole.
        position: of the table in it.

    Raises:
        BrokenBufferError: it does not lie inside; so do all methods.
    """

    def __init__(self, buffer: Buffer, position: int) -> None:
        self._buffer = buffer
        self._position = position
        self._vtable = position - _number(buffer, position, "<i")
        self._vtable_bytes = _number(buffer, self._vtable, "<H")

    @classmethod
    def root(cls, buffer: Buffer) -> Table:
        """The table that a buffer is."""
        return cls(buffer, _number(buffer, 0, "<I"))

    def number(self, slot: int, kind: str, default: int = 0) -> int:
        """A number.

        Args:
            slot: of the field, from 0 on in the order of the schema.
            kind: its format of `struct`, such as "<I".
            default: for a field that is not there.
        """
        place = self._place(slot)
        return _number(self._buffer, place, kind) if place else default

    def text(self, slot: int) -> str:
        """A string; empty if the field is not there."""
        place = self._place(slot)
        if not place:
            return ""
        start = self._follow(place)
        size = self._count(start)
        end = start + 4 + size
        if end > len(self._buffer):
            raise BrokenBufferError("a text leads out of the file")
        return self._buffer[start + 4 : end].decode(errors="replace")

    def table(self, slot: int) -> Table | None:
        """A table; None if the field is not there."""
        place = self._place(slot)
        return Table(self._buffer, self._follow(place)) if place else None

    def tables(self, slot: int) -> list[Table]:
        """A vector of tables; empty if the field is not there."""
        place = self._place(slot)
        if not place:
            return []
        start = self._follow(place)
        places = (start + 4 + 4 * index for index in range(self._count(start)))
        return [Table(self._buffer, self._follow(each)) for each in places]

    def _place(self, slot: int) -> int:
        """Where a field is; 0 if it is not there."""
        entry = 4 + 2 * slot
        if entry + 2 > self._vtable_bytes:
            return 0
        offset = _number(self._buffer, self._vtable + entry, "<H")
        return self._position + offset if offset else 0

    def _follow(self, place: int) -> int:
        return place + _number(self._buffer, place, "<I")

    def _count(self, start: int) -> int:
        count = _number(self._buffer, start, "<I")
        if count > MAX_ELEMENTS:
            raise BrokenBufferError(f"it lists {count} things; the limit is {MAX_ELEMENTS}")
        return count


def _number(buffer: Buffer, place: int, kind: str) -> int:
    if place < 0 or place + struct.calcsize(kind) > len(buffer):
        raise BrokenBufferError("an offset leads out of the file")
    number: int = struct.unpack_from(kind, buffer, place)[0]
    return number
