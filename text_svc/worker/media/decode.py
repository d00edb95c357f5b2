"""Decodes the images and sounds of a request, within limits that are checked first."""

from __future__ import annotations

import io
import struct
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
from text_svc.worker.media.sound_files import RATES, in_parts, read_frames, undecodable

Samples = npt.NDArray[np.float32]
# A sound's sample format, layout of channels and rate.
_Source = tuple[str, str, int]

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Raw samples: NumPy's name of the type, and FFmpeg's name of the sample format.
RAW_FORMATS = {"pcm_s16le": ("<i2", "s16"), "pcm_f32le": ("<f4", "flt")}
LAYOUTS = {1: "mono", 2: "stereo"}


def decode_image(
    data: bytes, max_pixels: int, field: str = "image", *, before: int = 0
) -> Image.Image:
    """An upright RGB image.

    Args:
        data: a file of one of IMAGE_FORMATS.
        max_pixels: of all images of a call together, according to their headers.
        field: the name of the `ImageData` in the request.
        before: pixels of the call's images before this one.

    Raises:
        MissingFieldError: there are no bytes.
        UndecodableImageError: they are not a complete image in a supported format.
        InputTooLargeError: the images have more pixels than `max_pixels`.
    """
    if not data:
        raise MissingFieldError(f"{field}.data is empty", field=f"{field}.data")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below
            picture = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        width, height = picture.size
        pixels = before + width * height
        if pixels > max_pixels:
            raise InputTooLargeError(
                f"the images of a call may have {max_pixels} pixels together; with {field} they "
                f"have {pixels}"
                if before
                else f"{field} has {width} x {height} pixels; the limit is {max_pixels} per call",
                metadata={"limit": str(max_pixels)},
            )
        return _upright(picture).convert("RGB")
    except Image.DecompressionBombError:
        raise InputTooLargeError(
            f"{field} has more pixels than the limit of {max_pixels}",
            metadata={"limit": str(max_pixels)},
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's readers raise
        raise UndecodableImageError(
            f"the {len(data)} bytes of {field}.data are not a complete "
            f"{', '.join(IMAGE_FORMATS)} image",
            field=f"{field}.data",
        ) from error


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except (TypeError, struct.error, KeyError):  # its EXIF has text where a number belongs
        return picture


def encode_png(picture: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def decode_audio(
    audio: pb.AudioData, rate: int, max_seconds: float, field: str = "audio", *, before: float = 0.0
) -> Samples:
    """A sound as one channel of samples from -1 to 1, shape (samples,).

    Args:
        audio: a file, or raw samples.
        rate: samples a second of the result.
        max_seconds: of all sounds of a call together.
        field: the name of the `AudioData` in the request.
        before: seconds of the call's sounds before this one.

    Raises:
        MissingFieldError, UnknownFormatError, OutOfRangeError: a field is wrong.
        InvalidArgumentError: the bytes are not a sound in a supported format, or its samples are
            not numbers.
        InputTooLargeError: the sounds are longer than `max_seconds`.
    """
    reader = SoundReader(rate, field)
    samples = np.concatenate([reader.add(audio, max_seconds, before), reader.rest()])
    if not len(samples):
        raise InvalidArgumentError(f"{field}.data has no samples", field=f"{field}.data")
    return samples


class SoundReader:
    """Decodes a sound that arrives in pieces; the samples are those of the whole sound.

    Args:
        rate: samples a second of the result.
        field: the name of an `AudioData` in the request.
    """

    def __init__(self, rate: int, field: str = "audio") -> None:
        self._rate = rate
        self._field = field
        # Made for the sound's own format, rate and channels, which may change within a file.
        self._resampler: av.AudioResampler | None = None
        self._source: _Source | None = None
        self._raw: _Source | None = None  # of the pieces that are raw samples

    def add(self, audio: pb.AudioData, max_seconds: float, before: float = 0.0) -> Samples:
        """Samples as of `decode_audio`; the last few come with the next piece, or with `rest`.

        Raises:
            As `decode_audio`, and InvalidArgumentError if the format of raw samples differs from
            that of the last ones.
        """
        if not audio.data:
            raise MissingFieldError(f"{self._field}.data is empty", field=f"{self._field}.data")
        parts: list[Samples] = []
        left = int((max_seconds - before) * self._rate)
        try:
            for frame in self._frames(audio):
                for part in self._resampled(frame):
                    parts.append(_mixed(part))
                    left -= len(parts[-1])
                    if left < 0:
                        raise self._too_long(max_seconds, before)
        except (av.FFmpegError, ValueError) as error:
            raise undecodable(len(audio.data), self._field) from error
        samples = _joined(parts)
        if not np.isfinite(samples).all():
            raise InvalidArgumentError(
                f"{self._field}.data has samples that are not finite", field=f"{self._field}.data"
            )
        return samples

    def rest(self) -> Samples:
        """The last samples."""
        return _joined([_mixed(part) for part in self._flushed()])

    def _frames(self, audio: pb.AudioData) -> Iterator[av.AudioFrame]:
        if not audio.format:
            return read_frames(audio.data, self._field, RAW_FORMATS)
        frame = _raw_frame(audio, self._field)
        source = _source(frame)
        if source != (self._raw or source):
            raise InvalidArgumentError(
                f"{self._field} cannot be decoded with what came before it: its format, rate or "
                "channels differ",
                field=self._field,
            )
        self._raw = source
        return in_parts(frame)

    def _resampled(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        source = _source(frame)
        before = [] if source == self._source else self._flushed()
        if self._resampler is None:
            self._resampler = av.AudioResampler(format="fltp", rate=self._rate)
            self._source = source
        return before + self._resampler.resample(frame)

    def _flushed(self) -> list[av.AudioFrame]:
        resampler, self._resampler = self._resampler, None
        return resampler.resample(None) if resampler else []

    def _too_long(self, max_seconds: float, before: float) -> InputTooLargeError:
        excess = "brings this call's audio over" if before else "is longer than"
        return InputTooLargeError(
            f"{self._field} {excess} the limit of {max_seconds:g} s",
            metadata={"limit_seconds": f"{max_seconds:g}"},
        )


def _source(frame: av.AudioFrame) -> _Source:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _mixed(frame: av.AudioFrame) -> Samples:
    """The mean of the channels. FFmpeg's own sum of two may exceed 1."""
    with np.errstate(invalid="ignore"):  # what is not finite is refused
        mixed: Samples = frame.to_ndarray().mean(0, dtype=np.float32)
    return mixed


def _joined(parts: list[Samples]) -> Samples:
    return np.concatenate([np.empty(0, np.float32), *parts])


def _raw_frame(audio: pb.AudioData, field: str) -> av.AudioFrame:
    if audio.format not in RAW_FORMATS:
        raise UnknownFormatError(
            f"{field}.format is {audio.format[:40]!r}; it must be one of "
            f"{', '.join(RAW_FORMATS)}, or empty for a file",
            field=f"{field}.format",
        )
    if audio.rate not in RATES:
        raise OutOfRangeError(
            f"{field}.rate is {audio.rate}; it must be from {RATES[0]} to {RATES[-1]}",
            field=f"{field}.rate",
        )
    channels = audio.channels or 1
    if channels not in LAYOUTS:
        raise OutOfRangeError(
            f"{field}.channels is {channels}; it must be 1 or 2", field=f"{field}.channels"
        )
    dtype, layout = RAW_FORMATS[audio.format]
    if len(audio.data) % (np.dtype(dtype).itemsize * channels):
        raise InvalidArgumentError(
            f"the {len(audio.data)} bytes of {field}.data are not a whole number of samples",
            field=f"{field}.data",
        )
    samples = np.frombuffer(audio.data, dtype).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(samples, format=layout, layout=LAYOUTS[channels])
    frame.sample_rate = audio.rate
    return frame
