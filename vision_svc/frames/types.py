"""Frames before and after decoding, and the size limits that apply to both."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

from ml import mediapipe_pb2 as pb
from shared.errors import FrameSizeError, InputTooLargeError, ServiceError

# Pixels of one picture: height x width x 3, 8 bits, red first.
Rgb: TypeAlias = "npt.NDArray[np.uint8]"


def as_rgb(array: npt.NDArray[Any]) -> Rgb:
    """The same array, for libraries whose type hints are wider than what they return."""
    return cast("Rgb", array)


# 7680 x 4320, "8K".
MAX_PIXELS = 33_177_600
# MediaPipe's image operations use 16-bit coordinates; half of that range leaves room for crops.
MAX_SIDE = 16_384


@dataclass(frozen=True)
class Limits:
    """The largest picture that is accepted.

    Attributes:
        max_pixels: width times height.
        max_side: width or height alone.
    """

    max_pixels: int = MAX_PIXELS
    max_side: int = MAX_SIDE

    def check(self, width: int, height: int) -> None:
        """Checks a size that the caller states or that a header contains.

        Raises:
            FrameSizeError: a side is not positive.
            InputTooLargeError: the picture exceeds a limit.
        """
        for field, side in (("width", width), ("height", height)):
            if side <= 0:
                raise FrameSizeError(f"{field} must be positive, not {side}", field=field)
        if width * height > self.max_pixels:
            raise InputTooLargeError(
                f"a picture of {width} x {height} exceeds the limit of {self.max_pixels} pixels",
                metadata={"max_pixels": str(self.max_pixels)},
            )
        if max(width, height) > self.max_side:
            raise InputTooLargeError(
                f"a side of a picture of {width} x {height} exceeds the limit of {self.max_side}",
                metadata={"max_side": str(self.max_side)},
            )


@dataclass(frozen=True)
class Box:
    """A part of a picture, in pixels."""

    x: int
    y: int
    width: int
    height: int

    def slices(self, step: int) -> tuple[slice, slice]:
        """The rows and columns of the part in a plane with a pixel for `step` x `step`."""
        rows = slice(self.y // step, (self.y + self.height) // step)
        return rows, slice(self.x // step, (self.x + self.width) // step)


@dataclass(frozen=True)
class EncodedFrame:
    """A picture or a video frame as the caller sent it.

    Attributes:
        data: the bytes, in `format`; a view if they are part of a larger message.
        format: one of the accepted names, upper or lower case.
        width, height: in pixels; only raw formats need them.
        timestamp_ms, number: the caller's own values, which its answer repeats.
        position: its place in the stream, from 1.
        received_at: its time of arrival, in seconds of `time.perf_counter`.
        data_field: the request's field that holds `data`, for error messages.
        extra: what the task needs to know beside the picture.
        refusal: why it cannot be decoded, if that is known already.
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
    extra: object = None
    refusal: ServiceError | None = None


@dataclass(frozen=True)
class DecodedFrame:
    """The pixels of a frame, and the frame that contained them.

    Attributes:
        image: the pixels.
        source: the frame that contained this picture.
        decode_seconds: how long decoding took.
    """

    image: Rgb
    source: EncodedFrame
    decode_seconds: float


class SkipReason(enum.Enum):
    """Why a frame has no picture; the values are those of the wire."""

    LOST = pb.SKIP_REASON_LOST
    WAITING_FOR_KEY_FRAME = pb.SKIP_REASON_WAITING_FOR_KEY_FRAME
    REORDERED = pb.SKIP_REASON_REORDERED
    BAD_FRAME = pb.SKIP_REASON_BAD_FRAME


_SKIP_MESSAGES = {
    SkipReason.LOST: "parts of the picture, or frames that it needs, never arrived",
    SkipReason.WAITING_FOR_KEY_FRAME: "no key frame has arrived yet",
    SkipReason.REORDERED: "pictures that are shown after this one had been decoded before it",
}


@dataclass(frozen=True)
class SkippedFrame:
    """A frame that brings no picture, and is answered without a result.

    Attributes:
        source: the frame.
        reason: why.
        error: what is wrong with a bad frame.
    """

    source: EncodedFrame
    reason: SkipReason
    error: ServiceError | None = None

    @property
    def message(self) -> str:
        """The reason, in a sentence."""
        return self.error.message if self.error else _SKIP_MESSAGES[self.reason]


@contextlib.contextmanager
def frame_context(frame: EncodedFrame) -> Iterator[None]:
    """Adds the frame's place in the stream to the `ServiceError`s raised inside."""
    try:
        yield
    except ServiceError as error:
        with_place(error, frame)
        raise


def with_place(error: ServiceError, frame: EncodedFrame) -> ServiceError:
    """The same error, with the frame's place in the stream."""
    place = f"frame {frame.position} of the stream (frame_number {frame.number})"
    error.message = f"{place}: {error.message}"
    error.args = (error.message,)
    error.metadata["frame_number"] = str(frame.number)
    error.metadata["frame_position"] = str(frame.position)
    return error
