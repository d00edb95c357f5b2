"""Landmarks as arrays: from MediaPipe's memory to messages without a Python object per point.

478 objects and as many messages take 1 ms of the interpreter, a tenth of what the face mesh itself
takes, and other streams wait for the interpreter during that time.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from mediapipe.tasks.python.components.containers.landmark_c import MpLandmarkC

from ml import mediapipe_pb2 as pb
from shared.wire.rows import RowField

if TYPE_CHECKING:
    import numpy.typing as npt
    from google.protobuf.message import Message

# An array of POINT.
Points: TypeAlias = "npt.NDArray[np.void]"

# MpLandmark of MediaPipe's C library, which has the memory layout of MpNormalizedLandmark. Values
# whose "has" is false are not set.
_FORMATS = {
    **dict.fromkeys(("x", "y", "z", "visibility", "presence"), np.float32),
    **dict.fromkeys(("has_visibility", "has_presence"), np.bool_),
}
POINT = np.dtype(
    {
        "names": list(_FORMATS),
        "formats": list(_FORMATS.values()),
        "offsets": [getattr(MpLandmarkC, name).offset for name in _FORMATS],
        "itemsize": ctypes.sizeof(MpLandmarkC),
    }
)


def view(landmarks: Any) -> Points:
    """The points of an MpLandmarks or MpNormalizedLandmarks, valid until its result is closed."""
    count = landmarks.landmarks_count
    if not count:
        return np.empty(0, POINT)
    address = ctypes.addressof(landmarks.landmarks.contents)
    block = (ctypes.c_char * (count * POINT.itemsize)).from_address(address)
    return np.frombuffer(block, POINT)


class LandmarkField:
    """Fills a field of type `repeated Landmark` from arrays.

    Args:
        message: the type that has the field.
        field: its name.
        optional: whether visibility and presence are included.
    """

    def __init__(self, message: type[Message], field: str, *, optional: bool = True) -> None:
        names = ["x", "y", "z", *(("visibility", "presence") if optional else ())]
        point = pb.Landmark(**dict.fromkeys(names, 1.0))
        # A serialised point ends with its numbers in order, each a tag byte and four bytes.
        columns = {
            name: ("<f4", -5 * left + 1)
            for name, left in zip(names, range(len(names), 0, -1), strict=True)
        }
        self._field = RowField(message(**{field: [point]}), columns)
        self._names = names

    def add(self, message: Message, points: Points) -> None:
        """Appends the points to the message's field."""
        self._field.append(message, {name: _values(points, name) for name in self._names})


def _values(points: Points, name: str) -> npt.NDArray[np.float32]:
    has = f"has_{name}"
    values = points[name]
    return np.where(points[has], values, 0) if has in _FORMATS else values
