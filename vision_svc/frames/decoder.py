"""Decodes frames by the name of their format, for single pictures and for streams."""

from __future__ import annotations

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
    SkippedFrame,
    SkipReason,
    frame_context,
)
from vision_svc.frames.video import (
    VIDEO_FORMATS,
    Outcome,
    VideoDecoder,
)

# Names of FFmpeg, V4L2, ROS, WebCodecs, Android and MIME types for the formats here.
_ALIASES = {
    alias: name
    for name, aliases in {
        "rgb": ("raw", "rgb24", "rgb8", "rgb888"),
        "bgr": ("bgr24", "bgr8", "bgr888"),
        "rgba": ("rgba32", "rgba8", "rgba8888"),
        "bgra": ("bgra32", "bgra8", "bgra8888"),
        "gray": ("gray8", "grey", "mono8", "y800"),
        "yuv420": ("yuv420p", "i420", "iyuv"),
        "jpeg": ("jpg", "mjpeg", "mjpg", "image/jpeg", "image/jpg", "video/mjpeg"),
        "png": ("image/png",),
        "webp": ("image/webp",),
        "h264": ("avc", "avc1", "avc3", "annexb", "h.264", "video/avc", "video/h264"),
        "hevc": ("h265", "h.265", "hvc1", "hev1", "video/hevc", "video/h265"),
        "av1": ("av01", "video/av1", "video/av01"),
        "vp8": ("vp08", "video/vp8", "video/x-vnd.on2.vp8"),
    }.items()
    for alias in aliases
}
_STILL_FORMATS = RAW_FORMATS | PICTURE_FORMATS
_STREAM_FORMATS = _STILL_FORMATS | VIDEO_FORMATS


def canonical_format(given: str) -> str:
    """The name of a format among ours, or what was given. Codec strings such as avc1.42E01E count
    by their first part.
    """
    name = given.strip().lower()
    if name in _STREAM_FORMATS:
        return name
    return _ALIASES.get(name) or _ALIASES.get(name.partition(".")[0], name)


def _format_name(frame: EncodedFrame, accepted: frozenset[str]) -> str:
    """The canonical name of the frame's format, after a check that the frame has data."""
    if frame.refusal:
        raise frame.refusal
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
    """Decodes a single picture, in any format but those of video.

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

    The format may change from frame to frame; leaving a video format flushes its decoder first.

    Args:
        limits: of a picture's size.
        skips_bad: whether a bad frame is skipped, instead of raised.
        extradata: the configuration record of the stream's video; may be empty.
    """

    def __init__(self, limits: Limits, *, skips_bad: bool = False, extradata: bytes = b"") -> None:
        self._limits = limits
        self._skips_bad = skips_bad
        self._extradata = extradata
        self._video: VideoDecoder | None = None
        self._lock = threading.Lock()

    def decode(self, frame: EncodedFrame) -> Iterator[Outcome]:
        """Yields the pictures that this frame completes: one, except for video. Frames of which it
        is now known that they bring no picture are skipped.

        Raises:
            ServiceError: as `decode_picture`; the message names the frame. The pictures of earlier
                frames are yielded before it is raised.
        """
        with self._lock:
            for outcome in self._decode(frame):
                if error := self._to_raise(outcome):
                    yield from self._flush()
                    raise error
                yield outcome

    def decode_still(self, frame: EncodedFrame) -> Outcome:
        """Decodes a frame that is a picture by itself, without waiting for other frames.

        Raises:
            ServiceError: as `decode_picture`; the message names the frame.
        """
        outcome = self._still(frame)
        if error := self._to_raise(outcome):
            raise error
        return outcome

    def needs_no_decoding(self, frame: EncodedFrame) -> bool:
        """Whether the frame's bytes are its pixels, and no earlier frame is held back."""
        return self._video is None and canonical_format(frame.format) == "rgb"

    def flush(self) -> Iterator[Outcome]:
        """Yields the pictures that a video decoder still holds, at the end of the stream. Frames
        that have not become a picture are skipped.
        """
        with self._lock:
            yield from self._flush()

    def _to_raise(self, outcome: Outcome) -> ServiceError | None:
        if self._skips_bad or not isinstance(outcome, SkippedFrame):
            return None
        return outcome.error

    def _flush(self) -> Iterator[Outcome]:
        video, self._video = self._video, None
        if video:
            yield from video.flush()

    def _decode(self, frame: EncodedFrame) -> Iterator[Outcome]:
        try:
            with frame_context(frame):
                name = _format_name(frame, _STREAM_FORMATS)
                if self._video and self._video.format_name != name:
                    yield from self._flush()
                if name in VIDEO_FORMATS and not self._video:
                    self._video = VideoDecoder(name, self._limits, self._extradata)
        except ServiceError as error:
            yield SkippedFrame(frame, SkipReason.BAD_FRAME, error)
            return
        if self._video:
            yield from self._video.decode(frame)
        else:
            yield self._still(frame)

    def _still(self, frame: EncodedFrame) -> Outcome:
        try:
            with frame_context(frame):
                name = _format_name(frame, _STREAM_FORMATS)
                return _decode_still(frame, name, self._limits)
        except ServiceError as error:
            return SkippedFrame(frame, SkipReason.BAD_FRAME, error)


def is_video(format_name: str) -> bool:
    """Whether frames of this format need the earlier ones, so that none may be skipped."""
    return canonical_format(format_name) in VIDEO_FORMATS
