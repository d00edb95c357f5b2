"""Compressed video: h264 (Annex B) and vp8, one decoder for the life of a stream."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Protocol, cast

import av
from av.video.codeccontext import VideoCodecContext

from shared.errors import UndecodableImageError
from shared.frames.headers import VP8_START_CODE, vp8_key_frame_size
from shared.frames.types import DecodedFrame, EncodedFrame, Limits, as_rgb

# More frames than any h264 stream may hold back for reordering (16, H.264 A.3.1), with room.
MAX_HELD_FRAMES = 32
_NAL_START = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)
# NAL unit types that hold a part of a picture (H.264, table 7-1).
_SLICE_TYPES = frozenset({1, 2, 3, 4, 5})


def _h264_has_picture(data: bytes, _limits: Limits) -> bool:
    """Whether an access unit holds a picture; parameter sets alone do not.

    Raises:
        ValueError: there is no start code, so this is not Annex B.
    """
    found = False
    for match in _NAL_START.finditer(data):
        if match[1][0] & 0x1F in _SLICE_TYPES:
            return True
        found = True
    if not found:
        raise ValueError("no Annex B start code")
    return False


def _vp8_has_picture(data: bytes, limits: Limits) -> bool:
    """Whether a VP8 frame is shown (RFC 6386, 9.1); others only feed later frames."""
    if len(data) < 3:
        raise ValueError("a VP8 frame has at least three bytes")
    if not data[0] & 1:
        if data[3:6] != VP8_START_CODE or len(data) < 10:
            raise ValueError("a VP8 key frame has a start code")
        limits.check(*vp8_key_frame_size(data))
    return bool(data[0] >> 4 & 1)


class _Inspect(Protocol):
    def __call__(self, data: bytes, limits: Limits, /) -> bool: ...


_INSPECT: dict[str, _Inspect] = {"h264": _h264_has_picture, "vp8": _vp8_has_picture}
VIDEO_FORMATS = frozenset(_INSPECT)


class VideoDecoder:
    """Decodes the frames of one stream and says for each picture which frame it came from.

    Pictures come in the order in which they are shown. A frame that holds none (parameter sets, a
    hidden VP8 frame) has no answer of its own.
    """

    def __init__(self, format_name: str, limits: Limits) -> None:
        self.format_name = format_name
        self._limits = limits
        self._inspect = _INSPECT[format_name]
        # One thread: more would hold frames back, and streams already run side by side.
        self._codec = cast("VideoCodecContext", VideoCodecContext.create(format_name, "r"))
        self._codec.thread_count = 1
        self._codec.options = {"max_pixels": str(limits.max_pixels)}
        self._held: dict[int, EncodedFrame] = {}
        self._count = 0

    def decode(self, frame: EncodedFrame) -> list[DecodedFrame]:
        """The pictures that this frame completes: none, one or several.

        Raises:
            UndecodableImageError: the frame is damaged, or needs one that was never sent.
            InputTooLargeError: the video is over a limit.
        """
        self._count += 1
        packet = av.Packet(frame.data)
        packet.pts = self._count
        packet.time_base = Fraction(1, 1000)
        try:
            if self._inspect(frame.data, self._limits):
                self._held[self._count] = frame
            decoded = list(self._pictures(packet))
        except (av.FFmpegError, ValueError) as error:
            # A picture over max_pixels fails in the decoder, which then knows its size.
            if self._codec.width and self._codec.height:
                self._limits.check(self._codec.width, self._codec.height)
            raise self._undecodable(frame) from error
        if len(self._held) > MAX_HELD_FRAMES:
            raise UndecodableImageError(
                f"{MAX_HELD_FRAMES} frames of {self.format_name} brought no picture",
                field=frame.data_field,
            )
        return decoded

    def flush(self) -> list[DecodedFrame]:
        """The pictures that the decoder held back; call at the end, once.

        Raises:
            UndecodableImageError: frames remain that never became a picture.
        """
        decoded = list(self._pictures(None))
        if self._held:
            raise self._undecodable(next(iter(self._held.values())))
        return decoded

    def _pictures(self, packet: av.Packet[Any] | None) -> Iterator[DecodedFrame]:
        start = time.perf_counter()
        for picture in self._codec.decode(packet):
            frame = self._held.pop(picture.pts or 0, None)
            if frame is None:  # a second picture of one frame would have nothing to answer
                continue
            if picture.is_corrupt:
                raise self._undecodable(frame)
            self._limits.check(picture.width, picture.height)
            image = as_rgb(picture.to_ndarray(format="rgb24"))
            seconds = time.perf_counter() - start
            yield DecodedFrame(image, frame, seconds)
            start = time.perf_counter()

    def _undecodable(self, frame: EncodedFrame) -> UndecodableImageError:
        return UndecodableImageError(
            f"the {len(frame.data)} bytes are not a {self.format_name} frame that can be decoded",
            field=frame.data_field,
        )
