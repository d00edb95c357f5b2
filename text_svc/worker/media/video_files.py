"""Reads video files: some of the frames of a clip, within limits that are checked first.

As for sounds, FFmpeg's demuxers tell what a file is, and only those and the decoders that are named
here are used; see `text_svc.worker.media.sound_files`.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Iterator
from itertools import islice

import av
import numpy as np
import numpy.typing as npt
from av.stream import Discard

from shared.errors import InputTooLargeError, InvalidArgumentError, MissingFieldError
from text_svc.worker.cancel import raise_if_cancelled

# Height, width and 3 colours.
Picture = npt.NDArray[np.uint8]

# Kinds of files as people call them, with FFmpeg's names of their demuxers.
CONTAINERS = {
    "MP4": ("mov", "mp4", "m4a", "3gp"),
    "WebM": ("webm",),
    "Matroska": ("matroska",),
    "AVI": ("avi",),
    "MPEG": ("mpeg", "mpegts"),
    "FLV": ("flv",),
    "GIF": ("gif",),
}
# FFmpeg's names of the decoders.
CODECS = frozenset(
    (
        *("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "theora", "mjpeg", "gif"),
        *("mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v2", "h263", "flv"),
    )
)
# Pixels of a frame: the largest are those of DCI 4K. A decoder keeps some 16 of them.
MAX_FRAME_PIXELS = 4096 * 2304
# Frames that are counted: more than a model can ask for, its most frames at the highest sampling
# rate. A table of a few kilobytes can list billions of packets, each of the same bytes.
MAX_COUNTED = 1 << 17
# Packets in a row without a picture, of a file that is damaged or no video at all.
_MAX_EMPTY_PACKETS = 64

_OPTIONS = {
    "format_whitelist": ",".join(name for names in CONTAINERS.values() for name in names),
    "codec_whitelist": ",".join(sorted(CODECS)),
    "protocol_whitelist": "none",
    "max_pixels": str(MAX_FRAME_PIXELS),
}


class VideoFile:
    """The first video of a file; sounds and other videos in it are not decoded.

    Attributes:
        count: of its frames, up to MAX_COUNTED or one more than `max_frames`.

    Args:
        data: the file.
        max_frames: that may be decoded.
        field: the name of the `VideoData` in the request.

    Raises:
        MissingFieldError: there are no bytes.
        InvalidArgumentError: they are not a video file of `CONTAINERS`.
        InputTooLargeError: its frames have more pixels than MAX_FRAME_PIXELS.
    """

    def __init__(self, data: bytes, max_frames: int, field: str = "video") -> None:
        if not data:
            raise MissingFieldError(f"{field}.data is empty", field=f"{field}.data")
        self._data = data
        self._max_frames = max_frames
        self._field = field
        with self._open() as file:
            packets = _packets(file, self._stream(file))
            most = max(MAX_COUNTED, max_frames + 1)
            frames = (packet for packet in packets if packet and packet.size)
            self.count = sum(1 for _ in islice(frames, most))
        if not self.count:
            raise self._undecodable()

    def frames(self, indices: Iterable[int], cancelled: threading.Event) -> Iterator[Picture]:
        """The frames of these indices, which do not fall: upright, as RGB.

        `count` is that of the packets, of which some may show nothing or be damaged: where there
        are less frames, the last one takes the place of those after it.

        Raises:
            CallCancelledError: the caller has gone.
            InvalidArgumentError: no frame can be decoded.
            InputTooLargeError: too many would have to be decoded, or one has too many pixels.
        """
        wanted = list(indices)
        if wanted[-1] >= self._max_frames:
            raise InputTooLargeError(
                f"{wanted[-1] + 1} frames of {self._field} would have to be decoded; the limit is "
                f"{self._max_frames}",
                metadata={"limit": str(self._max_frames)},
            )
        last: av.VideoFrame | None = None
        with self._open() as file:
            for index, frame in enumerate(self._decoded(file)):
                raise_if_cancelled(cancelled)
                last = frame
                while wanted and wanted[0] == index:
                    wanted.pop(0)
                    yield _picture(frame)
                if not wanted:
                    return
        if last is None:
            raise self._undecodable()
        for _ in wanted:
            yield _picture(last)

    def _open(self) -> av.container.InputContainer:
        try:
            return av.open(io.BytesIO(self._data), "r", options=_OPTIONS, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            *names, last = CONTAINERS
            raise InvalidArgumentError(
                f"{self._field}.data is not a {', '.join(names)} or {last} file, or its beginning "
                "is damaged",
                field=f"{self._field}.data",
            ) from error

    def _stream(self, file: av.container.InputContainer) -> av.VideoStream:
        for stream in file.streams.video:
            context = stream.codec_context
            if context is not None and context.codec.name in CODECS:
                for other in file.streams:
                    if other is not stream:
                        other.discard = Discard.all
                self._check(context.width, context.height)
                context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
                return stream
        raise self._undecodable()

    def _decoded(self, file: av.container.InputContainer) -> Iterator[av.VideoFrame]:
        stream = self._stream(file)
        empty = 0
        for packet in _packets(file, stream):
            frames: list[av.VideoFrame] = []
            try:
                frames = stream.decode(packet)
            except (av.InvalidDataError, av.ArgumentError):
                pass  # it is damaged, and left out as players do
            except EOFError:  # its decoder has been flushed
                return
            for frame in frames:
                self._check(frame.width, frame.height)
                yield frame
            empty = 0 if frames else empty + 1
            if empty > _MAX_EMPTY_PACKETS:
                raise self._undecodable()

    def _check(self, width: int, height: int) -> None:
        if width * height > MAX_FRAME_PIXELS:
            raise InputTooLargeError(
                f"{self._field} has frames of {width} x {height} pixels; the limit is "
                f"{MAX_FRAME_PIXELS} pixels",
                metadata={"limit": str(MAX_FRAME_PIXELS)},
            )

    def _undecodable(self) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"the {len(self._data)} bytes of {self._field}.data cannot be decoded as video",
            field=f"{self._field}.data",
        )


def _packets(
    file: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.Packet[av.VideoStream] | None]:
    """All packets, and then None, which flushes a decoder."""
    packets = file.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # the file ends in the middle of something
            packet = None
        yield packet
        if packet is None:
            return


def _picture(frame: av.VideoFrame) -> Picture:
    """A frame as RGB, turned as its file says."""
    pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
