"""Pictures and videos as frames, and frames as files."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import av
import cv2
import numpy as np

from cli.failures import CliError
from cli.inputs import STDIN

if TYPE_CHECKING:
    import numpy.typing as npt

    Rgb = npt.NDArray[np.uint8]

_JPEG_QUALITY = 90
# A file without frames a second, as of a camera.
_FPS = 30
_CLOSE_SECONDS = 0.5


def decode_picture(data: bytes, path: str) -> Rgb:
    """A picture as RGB, upright as its Exif orientation says, as the service has it.

    Raises:
        CliError: it cannot be decoded.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise CliError(f"{path} is not a picture that can be decoded")
    return cast("Rgb", image)


def write_picture(path: Path, image: Rgb) -> None:
    """Writes a picture in the format that its suffix names.

    Raises:
        CliError: there is no such format.
        OSError: it cannot be written.
    """
    suffix = path.suffix or ".png"
    written = False
    if suffix.isascii():  # else OpenCV may crash
        with contextlib.suppress(cv2.error):
            written, data = cv2.imencode(suffix, image[..., ::-1])
    if not written:
        raise CliError(f"cannot write {path}: its name must end with .png, .jpg or .webp")
    path.write_bytes(data.tobytes())


def jpeg(image: Rgb) -> bytes:
    """A frame as it is sent."""
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return bytes(data.tobytes())


@dataclass(frozen=True)
class Frame:
    """A picture of a video, and when it is shown."""

    image: Rgb
    milliseconds: int


class _Stdin:
    """Stdin as FFmpeg reads it.

    Without a buffer: a thread that waits in one when the process ends crashes it. FFmpeg goes on
    after Ctrl-C, which is noted here.
    """

    def __init__(self) -> None:
        self.stopped = False

    def read(self, size: int) -> bytes:
        try:
            return b"" if self.stopped else os.read(0, size)
        except KeyboardInterrupt:
            self.stopped = True
            return b""


class Video:
    """A video file, a camera such as /dev/video0, or "-" for stdin.

    Attributes:
        fps: its frames a second.
        frames: how many it has; None if that is not known.

    Raises:
        CliError: it cannot be opened, or has no video.
    """

    def __init__(self, path: str) -> None:
        self._name = "stdin" if path == STDIN else path
        camera = path.startswith("/dev/video")
        source: Any = path
        if path == STDIN:  # of a file, FFmpeg may look for the end first, where MP4 has its index
            source = "/dev/stdin" if stat.S_ISREG(os.fstat(0).st_mode) else _Stdin()
        self._lock, self._closed = Lock(), False
        try:
            self._container = av.open(source, format="v4l2" if camera else None)
        except (OSError, ValueError) as error:
            if isinstance(source, _Stdin) and source.stopped:
                raise KeyboardInterrupt from None
            if isinstance(error, FileNotFoundError):
                raise CliError(f"there is no {path}") from None
            raise CliError(f"{self._name} is not a video that can be read: {_why(error)}") from None
        if not self._container.streams.video:
            self._container.close()
            raise CliError(f"{self._name} has no video")
        stream = self._container.streams.video[0]
        self.fps = stream.average_rate or Fraction(_FPS)
        self.frames = stream.frames or None

    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Raises:
            CliError: it is damaged before its first frame; after that it ends there.
        """
        decoded = self._container.decode(video=0)
        last = -1
        for number in itertools.count():
            try:
                with self._lock:
                    if self._closed or (frame := next(decoded, None)) is None:
                        return
                    image = cast("Rgb", frame.to_ndarray(format="rgb24"))
            except (OSError, ValueError) as error:
                if number:
                    return
                raise CliError(f"{self._name} cannot be decoded: {_why(error)}") from None
            time = frame.time if frame.time is not None else number / self.fps
            last = max(last + 1, round(float(time) * 1000))
            yield Frame(image, last)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        # A thread may wait in there for the next frame of a camera or a pipe.
        if self._lock.acquire(timeout=_CLOSE_SECONDS):
            self._container.close()


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


class VideoWriter:
    """An H.264 file that browsers play, of the size of its first frame.

    It is whole even if it is closed early.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, fps: Fraction) -> None:
        # Whether it can be written shows now, with the reason; what is in it stays until a frame.
        path.open("ab").close()
        self._path, self._fps = path, fps
        self._container: Any = None
        self._stream: Any = None

    def write(self, image: Rgb) -> None:
        """Adds a frame. Odd rows and columns at the end are left out, as H.264 has none.

        Raises:
            CliError: its name has no suffix of a video.
        """
        if self._container is None:
            self._open(*image.shape[:2])
        even = np.ascontiguousarray(image[: self._stream.height, : self._stream.width])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def _open(self, height: int, width: int) -> None:
        try:
            self._container = av.open(str(self._path), "w")
        except (OSError, ValueError) as error:
            raise CliError(f"cannot write {self._path}: {_why(error)}") from None
        options = {"crf": "20", "preset": "veryfast"}
        self._stream = self._container.add_stream("libx264", rate=self._fps, options=options)
        self._stream.height, self._stream.width = height - height % 2, width - width % 2
        self._stream.pix_fmt = "yuv420p"

    def close(self) -> None:
        """Ends the file."""
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None
