"""Images and sounds of every format, and bytes that are neither."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from ml import transformers_pb2 as pb
from shared.errors import ServiceError
from tests.support.pictures import png_header
from tests.support.speech import wav
from text_svc.worker.media.decode import decode_audio, decode_image


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 10), (10, 200, 30)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_of_every_kind(kind: str) -> None:
    decoded = decode_image(picture(kind), 1000)
    assert decoded.mode == "RGB"
    assert decoded.size == (12, 10)
    assert np.abs(np.asarray(decoded)[5, 5].astype(int) - (10, 200, 30)).max() < 8


def test_a_picture_whose_exif_is_broken_is_still_one() -> None:
    # Two entries: the orientation, and a resolution that is text where a number belongs.
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    resolution = struct.pack("<HHI4s", 0x011A, 2, 4, b"x\0\0\0")
    header = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    file = io.BytesIO()
    exif = header + orientation + resolution + b"\0" * 4
    Image.new("RGB", (12, 10)).save(file, "JPEG", exif=exif)
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(file))
    assert decode_image(file.getvalue(), 1000).size == (12, 10)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "MISSING_FIELD"),
        (b"nothing that is a picture", "UNDECODABLE_IMAGE"),
        (picture("PNG")[:40], "UNDECODABLE_IMAGE"),
        (picture("JPEG")[:-200], "UNDECODABLE_IMAGE"),
        (b"GIF89a" + b"\xff" * 40, "UNDECODABLE_IMAGE"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "UNDECODABLE_IMAGE"),
        (png_header(40_000, 40_000), "INPUT_TOO_LARGE"),
        (png_header(101, 100), "INPUT_TOO_LARGE"),
    ],
)
def test_bad_pictures(data: bytes, reason: str) -> None:
    with pytest.raises(ServiceError) as caught:
        decode_image(data, 10_000)
    assert caught.value.reason == reason


def pcm(**fields: Any) -> pb.AudioData:
    return pb.AudioData(**{"data": b"\0" * 3200, "format": "pcm_s16le", "rate": 16_000, **fields})


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (pcm(data=b""), "MISSING_FIELD"),
        (pcm(data=b"\0" * 3201), "INVALID_ARGUMENT"),
        (pcm(format="mp5"), "UNKNOWN_FORMAT"),
        (pcm(rate=0), "OUT_OF_RANGE"),
        (pcm(rate=10_000_000), "OUT_OF_RANGE"),
        (pcm(channels=3), "OUT_OF_RANGE"),
        (pcm(data=b"\0\0\xc0\x7f" * 100, format="pcm_f32le"), "INVALID_ARGUMENT"),
        (pcm(data=b"\0" * 400_000), "INPUT_TOO_LARGE"),
        (pb.AudioData(data=b"no sound at all"), "INVALID_ARGUMENT"),
        (pb.AudioData(data=b"RIFF" + b"\xff" * 400), "INVALID_ARGUMENT"),
        (pb.AudioData(data=b"OggS" + b"\0" * 400), "INVALID_ARGUMENT"),
        (pb.AudioData(data=b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), "INVALID_ARGUMENT"),
    ],
)
def test_bad_sounds(audio: pb.AudioData, reason: str) -> None:
    with pytest.raises(ServiceError) as caught:
        decode_audio(audio, 16_000, max_seconds=10)
    assert caught.value.reason == reason


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_sounds_are_resampled(rate: int) -> None:
    time = np.arange(rate) / rate
    tone = (np.sin(2 * np.pi * 440 * time) * 20_000).astype(np.int16)
    raw = decode_audio(pcm(data=tone.astype("<i2").tobytes(), rate=rate), 16_000, 10)
    file = decode_audio(pb.AudioData(data=wav(tone, rate)), 16_000, 10)
    assert len(raw) == pytest.approx(16_000, abs=40)
    assert np.abs(raw - file).max() < 1e-6
    peak = np.abs(np.fft.rfft(raw[:16_000])).argmax() * 16_000 / len(raw[:16_000])
    assert peak == pytest.approx(440, abs=2)


def test_two_channels_become_one() -> None:
    both = np.tile(np.array([8000, 16_000], "<i2"), 1600)
    mono = decode_audio(pcm(data=both.tobytes(), channels=2), 16_000, 10)
    assert len(mono) == 1600
    assert mono == pytest.approx(np.full(1600, 12_000 / 32_768), abs=1e-3)
