"""What frames are before and after decoding, and the limits that both must keep."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

from shared.errors import FrameSizeError, InputTooLargeError, ServiceError

# Pixels of one picture: height x width x 3, 8 bits, red first.
Rgb: TypeAlias = "npt.NDArray[np.uint8]"


def as_rgb(array: npt.NDArray[Any]) -> Rgb:
    """The same array: libraries that are typed more widely than what they return need it."""
    return cast("Rgb", array)


# 7680 x 4320, "8K".
MAX_PIXELS = 33_177_600
# MediaPipe's image operations use 16-bit coordinates; half of that range leaves room for crops.
MAX_SIDE = 16_384


@dataclass(frozen=True)
class Limits:
    """How large a picture may be.

    Attributes:
        max_pixels: width times height.
        max_side: width or height alone.
    """

    max_pixels: int = MAX_PIXELS
    max_side: int = MAX_SIDE

    def check(self, width: int, height: int) -> None:
        """Checks a size that was said or read from a header.

        Raises:
            FrameSizeError: a side is not positive.
            InputTooLargeError: the picture is over a limit.
        """
        for field, side in (("width", width), ("height", height)):
            if side <= 0:
                raise FrameSizeError(f"{field} must be positive, not {side}", field=field)
        if width * height > self.max_pixels:
            raise InputTooLargeError(
                f"a picture of {width} x {height} is over the limit of {self.max_pixels} pixels",
                metadata={"max_pixels": str(self.max_pixels)},
            )
        if max(width, height) > self.max_side:
            raise InputTooLargeError(
                f"a picture of {width} x {height} has a side over the limit of {self.max_side}",
                metadata={"max_side": str(self.max_side)},
            )


@dataclass(frozen=True)
class EncodedFrame:
    """A picture or a frame of video as the caller sent it.

    Attributes:
        data: the bytes, in `format`; a view where they are part of a larger message.
        format: one of the accepted names, in any case.
        width, height: in pixels; only raw formats need them.
        timestamp_ms, number: the caller's own marks; they are carried along and never read.
        position: 1 for the first frame of a stream, and so on.
        received_at: when it came, in seconds of `time.perf_counter`.
        data_field: the request's name for `data`, for messages.
    """

    data: bytes | memoryview
    format: str
    width: int = 0
    height: int = 0
    timestamp_ms: int = 0
    number: int = 0
    position: int = 0
    received_at: float = 0.0
    data_field: str = "frame_data"


@dataclass(frozen=True)
class DecodedFrame:
    """Pixels, with the frame that they came from.

    Attributes:
        image: the pixels.
        source: the frame that this picture was in.
        decode_seconds: what decoding took.
    """

    image: Rgb
    source: EncodedFrame
    decode_seconds: float


@contextlib.contextmanager
def naming(frame: EncodedFrame) -> Iterator[None]:
    """Lets the message of an error say which frame of the stream it is about."""
    try:
        yield
    except ServiceError as error:
        place = f"frame {frame.position} of the stream (frame_number {frame.number})"
        error.message = f"{place}: {error.message}"
        error.args = (error.message,)
        error.metadata["frame_number"] = str(frame.number)
        error.metadata["frame_position"] = str(frame.position)
        raise
