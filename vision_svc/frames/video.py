"""Compressed video: h264 (Annex B) and vp8, with one decoder for the life of a stream."""

from __future__ import annotations

import contextlib
import enum
import re
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, cast

import av
from av.video.codeccontext import VideoCodecContext

from shared.errors import UndecodableImageError
from vision_svc.frames.headers import (
    VP8_START_CODE,
    vp8_key_frame_size,
)
from vision_svc.frames.types import (
    DecodedFrame,
    EncodedFrame,
    Limits,
    as_rgb,
    frame_context,
)

# More frames than any h264 stream may hold back for reordering (16, H.264 A.3.1), with a margin.
MAX_HELD_FRAMES = 32
# Parameter sets and messages that may arrive without a picture; real ones take some hundred bytes.
MAX_HEADER_BYTES = 64 << 10
_NAL_START = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)
# NAL unit types that contain a part of a picture (H.264, table 7-1).
_SLICE_TYPES = frozenset({1, 2, 3, 4, 5})


class _FrameKind(enum.Enum):
    """What a video frame contains."""

    PICTURE = "a picture to show"
    HIDDEN = "a picture that only later frames need"
    HEADERS = "parameter sets for the next picture"


def _inspect_h264(data: bytes, _limits: Limits) -> _FrameKind:
    """Looks for a slice among the NAL units of an access unit.

    Raises:
        ValueError: there is no start code, so the data is not Annex B.
    """
    types = [match[1][0] & 0x1F for match in _NAL_START.finditer(data)]
    if not types:
        raise ValueError("no Annex B start code")
    return _FrameKind.HEADERS if _SLICE_TYPES.isdisjoint(types) else _FrameKind.PICTURE


def _inspect_vp8(data: bytes, limits: Limits) -> _FrameKind:
    """Reads the frame tag (RFC 6386, 9.1).

    Raises:
        ValueError: the data is too short, or it is a key frame without its start code.
        InputTooLargeError: the size in a key frame exceeds a limit.
    """
    if len(data) < 3:
        raise ValueError("a VP8 frame has at least three bytes")
    if not data[0] & 1:
        if data[3:6] != VP8_START_CODE or len(data) < 10:
            raise ValueError("a VP8 key frame has a start code")
        limits.check(*vp8_key_frame_size(data))
    return _FrameKind.PICTURE if data[0] >> 4 & 1 else _FrameKind.HIDDEN


_INSPECT: dict[str, Callable[[bytes, Limits], _FrameKind]] = {
    "h264": _inspect_h264,
    "vp8": _inspect_vp8,
}
VIDEO_FORMATS = frozenset(_INSPECT)


class VideoDecoder:
    """Decodes the frames of one stream and pairs each picture with the frame that contained it.

    Pictures come in display order. A frame without one (parameter sets, a hidden VP8 frame) has no
    answer of its own.
    """

    def __init__(self, format_name: str, limits: Limits) -> None:
        self.format_name = format_name
        self._limits = limits
        self._inspect = _INSPECT[format_name]
        # One thread: more would hold frames back, and streams run side by side already.
        self._codec = cast("VideoCodecContext", VideoCodecContext.create(format_name, "r"))
        self._codec.thread_count = 1
        self._codec.options = {"max_pixels": str(limits.max_pixels)}
        self._held: dict[int, EncodedFrame] = {}
        # FFmpeg takes parameter sets only together with a picture.
        self._headers = b""
        self._count = 0

    def decode(self, frame: EncodedFrame) -> Iterator[DecodedFrame]:
        """Yields the pictures that this frame completes: none, one or several.

        Raises:
            UndecodableImageError: a frame is damaged, or needs a frame that was never sent.
            InputTooLargeError: the video exceeds a limit.
        """
        self._count += 1
        data = bytes(frame.data)
        with self._decode_errors(frame):
            kind = self._inspect(data, self._limits)
            if kind is _FrameKind.HEADERS:
                self._keep_headers(data)
                return
            start = time.perf_counter()
            pictures = self._codec.decode(self._packet(data))
        if kind is _FrameKind.PICTURE:
            self._held[self._count] = frame
        yield from self._answer(pictures, start)
        if len(self._held) > MAX_HELD_FRAMES:
            with frame_context(frame):
                raise UndecodableImageError(
                    f"no picture could be decoded from {MAX_HELD_FRAMES} {self.format_name} frames",
                    field=frame.data_field,
                )

    def flush(self) -> Iterator[DecodedFrame]:
        """Yields the pictures that the decoder has held back. Call it once, at the end.

        Raises:
            UndecodableImageError: some frames never became a picture.
        """
        if self._held:
            start = time.perf_counter()
            with self._decode_errors(next(iter(self._held.values()))):
                pictures = self._codec.decode(None)
            yield from self._answer(pictures, start)
        for frame in self._held.values():
            with self._decode_errors(frame):
                raise ValueError("the frame gave no picture")

    @contextlib.contextmanager
    def _decode_errors(self, frame: EncodedFrame) -> Iterator[None]:
        """Turns the decoder's errors about a frame into a `ServiceError` that names the frame."""
        with frame_context(frame):
            try:
                yield
            except (av.FFmpegError, ValueError) as error:
                # A picture over max_pixels fails in the decoder, which knows its size by then.
                if self._codec.width and self._codec.height:
                    self._limits.check(self._codec.width, self._codec.height)
                raise UndecodableImageError(
                    f"the {len(frame.data)} bytes are not a {self.format_name} frame that can be "
                    "decoded",
                    field=frame.data_field,
                ) from error

    def _keep_headers(self, data: bytes) -> None:
        if len(self._headers) + len(data) > MAX_HEADER_BYTES:
            raise ValueError("endless parameter sets")
        self._headers += data

    def _packet(self, data: bytes) -> av.Packet[Any]:
        packet = av.Packet(self._headers + data if self._headers else data)
        self._headers = b""
        packet.pts = self._count
        packet.time_base = Fraction(1, 1000)
        return packet

    def _answer(self, pictures: Iterable[av.VideoFrame], start: float) -> Iterator[DecodedFrame]:
        """Pairs pictures, whose decoding began at `start`, with the frames that contained them."""
        for picture in pictures:
            frame = self._held.pop(picture.pts or 0, None)
            if frame is None:  # a second picture of one frame has no frame to answer
                continue
            with self._decode_errors(frame):
                if picture.is_corrupt:
                    raise ValueError("parts of the picture are missing")
                self._limits.check(picture.width, picture.height)
                image = as_rgb(picture.to_ndarray(format="rgb24"))
            seconds = time.perf_counter() - start
            yield DecodedFrame(image, frame, seconds)
            start = time.perf_counter()
