"""Uncompressed pixel formats.

YUV is read as OpenCV reads it: BT.601, video range, chroma at half the size in both directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from shared.errors import FrameSizeError
from vision_svc.frames.types import (
    Box,
    EncodedFrame,
    Limits,
    Rgb,
    as_rgb,
)


@dataclass(frozen=True)
class _Layout:
    """The memory layout of a format: `rows` rows of bytes for every two rows of the picture."""

    rows: int
    channels: int
    to_rgb: int | None

    def shape(self, width: int, height: int) -> tuple[int, ...]:
        shape = (height * self.rows // 2, width)
        return (*shape, self.channels) if self.channels > 1 else shape


_LAYOUTS = {
    "rgb": _Layout(2, 3, None),
    "bgr": _Layout(2, 3, cv2.COLOR_BGR2RGB),
    "rgba": _Layout(2, 4, cv2.COLOR_RGBA2RGB),
    "bgra": _Layout(2, 4, cv2.COLOR_BGRA2RGB),
    "gray": _Layout(2, 1, cv2.COLOR_GRAY2RGB),
    "yuv420": _Layout(3, 1, cv2.COLOR_YUV2RGB_I420),
    "nv12": _Layout(3, 1, cv2.COLOR_YUV2RGB_NV12),
}
SUBSAMPLED_FORMATS = frozenset({"yuv420", "nv12"})  # chroma has half the size
RAW_FORMATS = frozenset(_LAYOUTS)


def crop_raw(frame: EncodedFrame, format_name: str, box: Box) -> bytes:
    """A part of a frame in one of `RAW_FORMATS`, in the same format, with the very same pixels.

    Args:
        frame: a frame that `decode_raw` takes.
        format_name: its format.
        box: the part; all of its numbers are even if chroma has half the size.
    """
    layout = _LAYOUTS[format_name]
    data = np.frombuffer(frame.data, np.uint8)
    rows, columns = box.slices(1)
    if format_name not in SUBSAMPLED_FORMATS:
        return data.reshape(layout.shape(frame.width, frame.height))[rows, columns].tobytes()
    area = frame.width * frame.height
    luma, chroma = data[:area].reshape(frame.height, frame.width), data[area:]
    rows_2, columns_2 = box.slices(2)
    planes = (
        chroma.reshape(frame.height // 2, frame.width // 2, 2)[rows_2, columns_2]
        if format_name == "nv12"
        else chroma.reshape(2, frame.height // 2, frame.width // 2)[:, rows_2, columns_2]
    )
    return luma[rows, columns].tobytes() + planes.tobytes()


def decode_raw(frame: EncodedFrame, format_name: str, limits: Limits) -> Rgb:
    """Decodes a frame in one of `RAW_FORMATS`.

    For "rgb", the result is a read-only view of the frame's data, without a copy.

    Raises:
        FrameSizeError: width or height is missing, or odd where the format needs an even one, or
            the byte count does not match them.
        InputTooLargeError: the picture exceeds a limit.
    """
    width, height = frame.width, frame.height
    limits.check(width, height)
    if format_name in SUBSAMPLED_FORMATS and (width % 2 or height % 2):
        raise FrameSizeError(
            f"{format_name} needs an even width and height, not {width} x {height}", field="width"
        )
    layout = _LAYOUTS[format_name]
    shape = layout.shape(width, height)
    expected = math.prod(shape)
    if len(frame.data) != expected:
        raise FrameSizeError(
            f"{width} x {height} in {format_name} is {expected} bytes, not {len(frame.data)}",
            field=frame.data_field,
        )
    pixels = np.frombuffer(frame.data, np.uint8).reshape(shape)
    return pixels if layout.to_rgb is None else as_rgb(cv2.cvtColor(pixels, layout.to_rgb))
