"""Compressed video: h264, hevc, av1 and vp8, with one decoder for the life of a stream.

Frames get lost on the way from a camera. Every frame that arrives is accounted for all the same: it
brings a picture, or is skipped for a reason, and the decoder goes on at the next key frame.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias, cast

import av
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext

from shared.errors import ServiceError, UndecodableImageError
from vision_svc.frames.bitstreams import (
    MAX_HEADER_BYTES,
    START_CODE,
    FrameKind,
    Inspect,
    inspect_av1,
    inspect_h264,
    inspect_hevc,
    inspect_vp8,
    is_length_prefixed,
    read_description,
    to_annex_b,
)
from vision_svc.frames.types import (
    DecodedFrame,
    EncodedFrame,
    Limits,
    SkippedFrame,
    SkipReason,
    as_rgb,
    frame_context,
    with_place,
)

# More pictures than one may be overtaken by, in any of the formats (16), with a margin.
MAX_OVERTAKEN = 32


@dataclass(frozen=True)
class _Format:
    """How a format is decoded.

    Attributes:
        codec: FFmpeg's decoder.
        inspect: tells what a frame contains.
        has_units: whether a frame consists of NAL units.
        notices_losses: whether the decoder marks pictures whose references never arrived. The
            others conceal them, as players do: a picture that they mark has damaged data.
    """

    codec: str
    inspect: Inspect
    has_units: bool
    notices_losses: bool


_FORMATS = {
    "h264": _Format("h264", inspect_h264, has_units=True, notices_losses=False),
    "hevc": _Format("hevc", inspect_hevc, has_units=True, notices_losses=True),
    "av1": _Format("libdav1d", inspect_av1, has_units=False, notices_losses=True),
    "vp8": _Format("vp8", inspect_vp8, has_units=False, notices_losses=False),
}
VIDEO_FORMATS = frozenset(_FORMATS)

Outcome: TypeAlias = DecodedFrame | SkippedFrame


@dataclass(frozen=True)
class _Held:
    """A frame that the decoder has, and whose picture has not come."""

    frame: EncodedFrame
    is_key: bool


class VideoDecoder:
    """Decodes the frames of one stream and pairs each picture with the frame that contained it.

    Pictures come in display order. A frame that brings none is skipped as soon as that is known,
    which is at once unless frames are reordered. Parameter sets alone and hidden VP8 frames have no
    answer of their own.

    Args:
        format_name: one of `VIDEO_FORMATS`.
        limits: of a picture's size.
        extradata: the stream's configuration record, or its parameter sets; may be empty.

    Raises:
        UndecodableImageError: the extradata cannot be read.
    """

    def __init__(self, format_name: str, limits: Limits, extradata: bytes = b"") -> None:
        self.format_name = format_name
        self._limits = limits
        self._format = _FORMATS[format_name]
        self._codec = cast("VideoCodecContext", VideoCodecContext.create(self._format.codec, "r"))
        # One thread: more would hold frames back, and streams run side by side already.
        self._codec.thread_count = 1
        self._codec.options = {"max_pixels": str(limits.max_pixels)}
        # Pictures before the first key frame come marked, instead of not at all.
        self._codec.flags |= Flags.output_corrupt
        self._held: dict[int, _Held] = {}
        # FFmpeg takes parameter sets only together with a picture.
        self._headers = b""
        self._length_size = 0
        if extradata:
            self._read_extradata(extradata)
        self._count = 0
        # Whether a whole picture has come, at the start and after each restart.
        self._in_step = False
        self._has_failed = False
        self._size = (0, 0)

    def decode(self, frame: EncodedFrame) -> Iterator[Outcome]:
        """Yields the pictures that this frame completes, and the frames that bring none.

        Never raises: a frame that cannot be decoded, or exceeds a limit, is skipped as
        `BAD_FRAME`, with the error.
        """
        self._count += 1
        try:
            with frame_context(frame):
                data = self._framed(bytes(frame.data))
                kind = self._format.inspect(data, self._limits)
                if kind is FrameKind.HEADERS:
                    self._keep_headers(data)
                    return
        except ValueError as error:
            yield self._bad(frame, f": {error}")
            return
        except ServiceError as error:
            yield SkippedFrame(frame, SkipReason.BAD_FRAME, error)
            return
        if kind is FrameKind.KEY and self._has_failed:
            # After some errors dav1d fails for ever; this frame needs none of those before it.
            yield from self._restart()
        start = time.perf_counter()
        depth = self._codec.reorder_depth
        try:
            pictures = self._codec.decode(self._packet(data))
        except (av.FFmpegError, ValueError) as error:
            yield from self._failed(frame, kind, error)
            return
        if kind is not FrameKind.HIDDEN:
            self._held[self._count] = _Held(frame, kind is FrameKind.KEY)
        yield from self._paired(pictures, start)
        if len(self._held) > self._codec.reorder_depth or self._codec.reorder_depth > depth:
            yield from self._without_picture(kind, deeper=self._codec.reorder_depth > depth)

    def flush(self) -> Iterator[Outcome]:
        """Yields what the decoder has held back, picture or not; it begins anew after that."""
        yield from self._restart()

    def _read_extradata(self, extradata: bytes) -> None:
        try:
            description = read_description(self.format_name, extradata)
        except ValueError as error:
            raise UndecodableImageError(
                f"the option extradata is no configuration record of {self.format_name}: {error}",
                field="metadata",
            ) from error
        self._headers, self._length_size = description.headers, description.length_size

    def _framed(self, data: bytes) -> bytes:
        """The frame's NAL units in Annex B, whichever way they came."""
        if not self._format.has_units:
            return data
        if self._length_size:
            return to_annex_b(data, self._length_size)
        # What begins with a start code is looked at once, at the beginning of the stream.
        is_first = self._count == 1 or not data.startswith((START_CODE, b"\0" + START_CODE))
        if is_first and is_length_prefixed(data):
            if self._count == 1:
                self._length_size = 4
            return to_annex_b(data, 4)
        return data

    def _keep_headers(self, data: bytes) -> None:
        if len(self._headers) + len(data) > MAX_HEADER_BYTES:
            raise ValueError(f"its parameter sets take more than {MAX_HEADER_BYTES} bytes")
        self._headers += data

    def _packet(self, data: bytes) -> av.Packet[Any]:
        packet = av.Packet(self._headers + data if self._headers else data)
        self._headers = b""
        packet.pts = self._count
        packet.time_base = Fraction(1, 1000)
        return packet

    def _failed(self, frame: EncodedFrame, kind: FrameKind, error: Exception) -> Iterator[Outcome]:
        """What the decoder's error about a frame means."""
        try:
            # A picture over max_pixels fails in the decoder, which knows its size by then.
            with frame_context(frame):
                if self._codec.width and self._codec.height:
                    self._limits.check(self._codec.width, self._codec.height)
        except ServiceError as too_large:
            yield SkippedFrame(frame, SkipReason.BAD_FRAME, too_large)
            return
        self._has_failed = True
        self._check_step(self._codec.width, self._codec.height)
        if kind is FrameKind.KEY:
            yield from self._restart()  # the frames after it need it
        elif not self._in_step or self._format.notices_losses:
            if kind is not FrameKind.HIDDEN:
                yield SkippedFrame(frame, self._reason(SkipReason.LOST))
            return
        unsupported = isinstance(error, NotImplementedError)
        yield self._bad(frame, ": FFmpeg does not support its profile" if unsupported else "")

    def _paired(self, pictures: Iterable[av.VideoFrame], start: float) -> Iterator[Outcome]:
        """Pairs pictures, whose decoding began at `start`, with the frames that contained them."""
        for picture in pictures:
            number = picture.pts or 0
            held = self._held.pop(number, None)
            if held is None:  # a second picture of one frame has no frame to answer
                continue
            if picture.is_corrupt:
                self._check_step(picture.width, picture.height)
                yield self._marked(held)
                continue
            begins = held.is_key or not self._in_step
            if self._held:
                yield from self._overtaken(number if begins else number - MAX_OVERTAKEN)
            self._in_step = True
            self._size = (picture.width, picture.height)
            yield self._decoded(picture, held.frame, start)
            start = time.perf_counter()

    def _decoded(self, picture: av.VideoFrame, frame: EncodedFrame, start: float) -> Outcome:
        try:
            with frame_context(frame):
                self._limits.check(picture.width, picture.height)
        except ServiceError as error:
            return SkippedFrame(frame, SkipReason.BAD_FRAME, error)
        try:
            image = as_rgb(picture.to_ndarray(format="rgb24"))
        except (av.FFmpegError, ValueError):
            return self._bad(frame)
        return DecodedFrame(image, frame, time.perf_counter() - start)

    def _marked(self, held: _Held) -> SkippedFrame:
        """A picture that the decoder itself calls incomplete."""
        if (self._in_step or held.is_key) and not self._format.notices_losses:
            return self._bad(held.frame, ": parts of the picture are missing")
        return SkippedFrame(held.frame, self._reason(SkipReason.LOST))

    def _overtaken(self, before: int) -> Iterator[SkippedFrame]:
        """Skips held frames that arrived before this one: their pictures cannot come any more."""
        reason = self._reason(self._dropped)
        for number in [number for number in self._held if number < before]:
            yield SkippedFrame(self._held.pop(number).frame, reason)

    def _without_picture(self, kind: FrameKind, *, deeper: bool) -> Iterator[Outcome]:
        """Skips frames whose pictures the decoder has dropped, since it holds no more than these.

        FFmpeg drops a picture whose place in display order has passed: after a key frame was lost,
        the frames that follow it count from 0 again.

        Args:
            kind: what the latest frame contains.
            deeper: whether the decoder has learned from the latest frame that it must hold more.
        """
        depth = self._codec.reorder_depth
        if deeper and self._in_step and kind is FrameKind.PICTURE:
            # What told it so was the picture of this frame, which came too late.
            if held := self._held.pop(self._count, None):
                yield SkippedFrame(held.frame, SkipReason.REORDERED)
        elif self._in_step and depth and len(self._held) > depth + 1:
            # Which ones it has dropped is not known, and it would show the others in any order.
            yield from self._restart()
        elif not depth or not self._in_step:
            reason = self._reason(self._dropped)
            while len(self._held) > depth:
                yield SkippedFrame(self._held.pop(next(iter(self._held))).frame, reason)

    def _restart(self) -> Iterator[Outcome]:
        """Takes the pictures that the decoder has, and lets it wait for the next key frame."""
        start, depth = time.perf_counter(), self._codec.reorder_depth
        if self._held:
            try:
                pictures = self._codec.decode(None)
            except (av.FFmpegError, ValueError):
                pictures = []
            yield from self._paired(pictures, start)
            yield from self._overtaken(self._count + 1)
        if self._codec.is_open:
            self._codec.flush_buffers()
            self._codec.reorder_depth = depth
        self._in_step = self._has_failed = False

    def _check_step(self, width: int, height: int) -> None:
        """A picture of another size without a key frame: that frame was lost."""
        if self._in_step and (width, height) != self._size:
            self._in_step = False

    @property
    def _dropped(self) -> SkipReason:
        return SkipReason.LOST if self._format.notices_losses else SkipReason.REORDERED

    def _reason(self, reason: SkipReason) -> SkipReason:
        return reason if self._in_step else SkipReason.WAITING_FOR_KEY_FRAME

    def _bad(self, frame: EncodedFrame, why: str = "") -> SkippedFrame:
        error = UndecodableImageError(
            f"the {len(frame.data)} bytes are not a {self.format_name} frame that can be decoded"
            + why,
            field=frame.data_field,
        )
        return SkippedFrame(frame, SkipReason.BAD_FRAME, with_place(error, frame))
