"""Images and sounds out of a request, checked before they are decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ml import transformers_pb2 as pb
from shared.errors import (
    InputTooLargeError,
    InvalidArgumentError,
    MissingFieldError,
    OutOfRangeError,
    UndecodableImageError,
    UnknownFormatError,
)

Samples = npt.NDArray[np.float32]

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Samples as they are: NumPy's name of the type, and FFmpeg's of the layout.
RAW_FORMATS = {"pcm_s16le": ("<i2", "s16"), "pcm_f32le": ("<f4", "flt")}
LAYOUTS = {1: "mono", 2: "stereo"}
RATES = range(1000, 384_001)
# Files by their first bytes, and FFmpeg's reader of each. Readers that open other files, such as
# playlists, are never reached.
_CONTAINERS = (
    (0, b"RIFF", "wav"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (0, b"\xff\xfb", "mp3"),
    (0, b"\xff\xf3", "mp3"),
    (0, b"\xff\xf2", "mp3"),
    (4, b"ftyp", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
)


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """An upright RGB picture.

    Raises:
        MissingFieldError: there are no bytes.
        UndecodableImageError: they are no whole picture of a known format.
        InputTooLargeError: the header tells more pixels than `max_pixels`.
    """
    if not data:
        raise MissingFieldError("image.data is empty", field="image.data")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below
            picture = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        width, height = picture.size
        if width * height > max_pixels:
            raise InputTooLargeError(
                f"the image has {width} x {height} pixels, the limit is {max_pixels}",
                metadata={"limit": str(max_pixels)},
            )
        return ImageOps.exif_transpose(picture).convert("RGB")
    except Image.DecompressionBombError:
        raise InputTooLargeError(
            f"the image has more pixels than the limit of {max_pixels}",
            metadata={"limit": str(max_pixels)},
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's readers raise
        raise UndecodableImageError(
            f"the {len(data)} bytes of image.data are not a whole {', '.join(IMAGE_FORMATS)} "
            "picture",
            field="image.data",
        ) from error


def encode_png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def decode_audio(audio: pb.AudioData, rate: int, max_seconds: float) -> Samples:
    """One channel of samples from -1 to 1 at `rate`, shape (samples,).

    Raises:
        MissingFieldError, UnknownFormatError, OutOfRangeError: a field is wrong.
        InvalidArgumentError: the bytes are no sound of a known format.
        InputTooLargeError: it is longer than `max_seconds`.
    """
    if not audio.data:
        raise MissingFieldError("audio.data is empty", field="audio.data")
    if audio.format:
        return _resampled([_raw_frame(audio)], rate, max_seconds)
    try:
        with av.open(io.BytesIO(audio.data), "r", format=_container(audio.data)) as file:
            if not file.streams.audio:
                raise _undecodable(audio)
            return _resampled(file.decode(file.streams.audio[0]), rate, max_seconds)
    except (av.FFmpegError, ValueError) as error:
        raise _undecodable(audio) from error


def _container(data: bytes) -> str:
    for offset, magic, name in _CONTAINERS:
        if data.startswith(magic, offset):
            return name
    raise InvalidArgumentError(
        "audio.data is no WAV, FLAC, Ogg, MP3, MP4 or Matroska file; set audio.format for samples "
        f"as they are: {', '.join(RAW_FORMATS)}",
        field="audio.data",
    )


def _undecodable(audio: pb.AudioData) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the {len(audio.data)} bytes of audio.data hold no sound that can be decoded",
        field="audio.data",
    )


def _raw_frame(audio: pb.AudioData) -> av.AudioFrame:
    if audio.format not in RAW_FORMATS:
        raise UnknownFormatError(
            f"audio.format {audio.format[:40]!r} is not known; accepted are "
            f"{', '.join(RAW_FORMATS)}, or empty for a file",
            field="audio.format",
        )
    if audio.rate not in RATES:
        raise OutOfRangeError(
            f"audio.rate is {audio.rate}; accepted is {RATES[0]} to {RATES[-1]}", field="audio.rate"
        )
    channels = audio.channels or 1
    if channels not in LAYOUTS:
        raise OutOfRangeError(
            f"audio.channels is {channels}; accepted is 1 or 2", field="audio.channels"
        )
    dtype, layout = RAW_FORMATS[audio.format]
    if len(audio.data) % (np.dtype(dtype).itemsize * channels):
        raise InvalidArgumentError(
            f"the {len(audio.data)} bytes of audio.data are no whole samples", field="audio.data"
        )
    samples = np.frombuffer(audio.data, dtype).reshape(1, -1)
    if dtype == "<f4" and not np.isfinite(samples).all():
        raise InvalidArgumentError("audio.data has samples that are no numbers", field="audio.data")
    frame = av.AudioFrame.from_ndarray(samples, format=layout, layout=LAYOUTS[channels])
    frame.sample_rate = audio.rate
    return frame


def _resampled(
    frames: Iterator[av.AudioFrame] | list[av.AudioFrame], rate: int, max_seconds: float
) -> Samples:
    resampler = av.AudioResampler(format="fltp", rate=rate)
    parts: list[Samples] = []
    left = int(max_seconds * rate)
    for frame in (*frames, None) if isinstance(frames, list) else _then_none(frames):
        for part in resampler.resample(frame):
            # FFmpeg itself would add two channels up to more than 1.
            parts.append(part.to_ndarray().mean(0))
            left -= len(parts[-1])
            if left < 0:
                raise InputTooLargeError(
                    f"the audio is longer than the limit of {max_seconds:g} s",
                    metadata={"limit_seconds": f"{max_seconds:g}"},
                )
    if not parts:
        raise InvalidArgumentError("audio.data has no samples", field="audio.data")
    return np.concatenate(parts).astype(np.float32, copy=False)


def _then_none(frames: Iterator[av.AudioFrame]) -> Iterator[av.AudioFrame | None]:
    """The frames, and the sign that makes the resampler give out its last samples."""
    yield from frames
    yield None
