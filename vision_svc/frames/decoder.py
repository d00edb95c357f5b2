"""Decodes frames by the name of their format, for single pictures and for streams."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from shared.errors import MissingFieldError, ServiceError, UnknownFormatError
from vision_svc.frames.pictures import (
    PICTURE_FORMATS,
    decode_compressed,
)
from vision_svc.frames.raw import (
    RAW_FORMATS,
    decode_raw,
)
from vision_svc.frames.types import (
    DecodedFrame,
    EncodedFrame,
    Limits,
    frame_context,
)
from vision_svc.frames.video import (
    VIDEO_FORMATS,
    VideoDecoder,
)

_ALIASES = {"jpg": "jpeg", "raw": "rgb", "i420": "yuv420"}
_STILL_FORMATS = RAW_FORMATS | PICTURE_FORMATS
_STREAM_FORMATS = _STILL_FORMATS | VIDEO_FORMATS


def canonical_format(name: str) -> str:
    """The name of a format without regard to case and aliases."""
    name = name.strip().lower()
    return _ALIASES.get(name, name)


def _format_name(frame: EncodedFrame, accepted: frozenset[str]) -> str:
    """The canonical name of the frame's format, after a check that the frame has data."""
    if not frame.format:
        raise MissingFieldError("format is empty", field="format")
    name = canonical_format(frame.format)
    if name not in accepted:
        names = ", ".join(sorted(accepted))
        raise UnknownFormatError(
            f"format {frame.format[:40]!r} is not known; it must be one of {names}", field="format"
        )
    if not frame.data:
        raise MissingFieldError(f"{frame.data_field} is empty", field=frame.data_field)
    return name


def decode_picture(frame: EncodedFrame, limits: Limits) -> DecodedFrame:
    """Decodes a single picture, in any format but h264 and vp8.

    Raises:
        MissingFieldError: the format or the data is empty.
        UnknownFormatError: the format is not known, or it is a video format.
        FrameSizeError: the byte count does not match the width and height.
        UndecodableImageError: the data is not a picture of this format.
        InputTooLargeError: the picture exceeds a limit.
    """
    return _decode_still(frame, _format_name(frame, _STILL_FORMATS), limits)


def _decode_still(frame: EncodedFrame, name: str, limits: Limits) -> DecodedFrame:
    start = time.perf_counter()
    decode = decode_raw if name in RAW_FORMATS else decode_compressed
    image = decode(frame, name, limits)
    return DecodedFrame(image, frame, time.perf_counter() - start)


class FrameDecoder:
    """Decodes the frames of one stream, in order. Threads may share it: one decodes at a time.

    The format may change from frame to frame; leaving h264 or vp8 flushes its decoder first.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._video: VideoDecoder | None = None
        self._lock = threading.Lock()

    def decode(self, frame: EncodedFrame) -> Iterator[DecodedFrame]:
        """Yields the pictures that this frame completes: one, except for h264 and vp8.

        Raises:
            ServiceError: as `decode_picture`; the message names the frame. The pictures of earlier
                frames are yielded before it is raised.
        """
        with self._lock:
            try:
                yield from self._decode(frame)
            except ServiceError:
                with contextlib.suppress(ServiceError):
                    yield from self._flush()
                raise

    def decode_still(self, frame: EncodedFrame) -> DecodedFrame:
        """Decodes a frame that is a picture by itself, without waiting for other frames.

        Raises:
            ServiceError: as `decode_picture`; the message names the frame.
        """
        with frame_context(frame):
            name = _format_name(frame, _STREAM_FORMATS)
            return _decode_still(frame, name, self._limits)

    def needs_no_decoding(self, frame: EncodedFrame) -> bool:
        """Whether the frame's bytes are its pixels, and no earlier frame is held back."""
        return self._video is None and canonical_format(frame.format) == "rgb"

    def flush(self) -> Iterator[DecodedFrame]:
        """Yields the pictures that a video decoder still holds, at the end of the stream.

        Raises:
            UndecodableImageError: some frames never became a picture; the message names the first
                one.
        """
        with self._lock:
            yield from self._flush()

    def _flush(self) -> Iterator[DecodedFrame]:
        video, self._video = self._video, None
        if video:
            yield from video.flush()

    def _decode(self, frame: EncodedFrame) -> Iterator[DecodedFrame]:
        with frame_context(frame):
            name = _format_name(frame, _STREAM_FORMATS)
        if self._video and self._video.format_name != name:
            yield from self._flush()
        if name in VIDEO_FORMATS:
            self._video = self._video or VideoDecoder(name, self._limits)
            yield from self._video.decode(frame)
        else:
            yield self.decode_still(frame)


def is_video(format_name: str) -> bool:
    """Whether frames of this format need the earlier ones, so that none may be skipped."""
    return format_name.strip().lower() in VIDEO_FORMATS
