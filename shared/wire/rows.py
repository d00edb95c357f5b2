"""Fills a repeated message field from arrays, without an object for each item."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message


class RowField:
    """A field of type `repeated SomeMessage` whose items all have the same size.

    The items are laid out as rows of an array, each like the serialised sample, and protobuf
    parses all of them at once.

    Args:
        sample: a message with one item in the field and nothing else. The numbers of the item
            must not be 0, which protobuf leaves out.
        columns: where the arrays go: a little-endian dtype, with a shape if it is more than a
            number, and its offset in the serialised sample; negative offsets count from the end.
    """

    def __init__(self, sample: Message, columns: Mapping[str, tuple[npt.DTypeLike, int]]) -> None:
        self._row = sample.SerializeToString()
        size = len(self._row)
        self._dtype = np.dtype(
            {
                "names": list(columns),
                "formats": [dtype for dtype, _ in columns.values()],
                "offsets": [offset % size for _, offset in columns.values()],
                "itemsize": size,
            }
        )

    def append(self, message: Message, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Appends items to the field of a message of the sample's type.

        Args:
            message: gets the items.
            arrays: one per column, each with an entry per item.
        """
        buffer = bytearray(self._row * len(next(iter(arrays.values()))))
        rows = np.frombuffer(buffer, self._dtype)
        for name, values in arrays.items():
            rows[name] = values
        message.MergeFromString(bytes(buffer))
