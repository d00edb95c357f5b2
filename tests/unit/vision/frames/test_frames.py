"""Decoding frames of every format, and the errors for frames that are refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from shared.errors import (
    FrameSizeError,
    InputTooLargeError,
    MissingFieldError,
    ServiceError,
    UndecodableImageError,
    UnknownFormatError,
)
from vision_svc.frames.decoder import (
    FrameDecoder,
    decode_picture,
    is_video,
)
from vision_svc.frames.headers import (
    HeaderError,
    jpeg_orientation,
    png_size,
    webp_size,
)
from vision_svc.frames.types import (
    EncodedFrame,
    Limits,
)

LIMITS = Limits()
# Four colours by which every orientation and channel order can be recognised.
CORNERS = np.zeros((48, 64, 3), np.uint8)
CORNERS[:24, :32] = (250, 10, 10)
CORNERS[:24, 32:] = (10, 250, 10)
CORNERS[24:, :32] = (10, 10, 250)
CORNERS[24:, 32:] = (240, 240, 20)


def decode(data: bytes, name: str, width: int = 0, height: int = 0) -> np.ndarray:
    return decode_picture(EncodedFrame(data, name, width, height), LIMITS).image


def save(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def close_to(image: np.ndarray, expected: np.ndarray, tolerance: int) -> bool:
    """Equal within `tolerance`, away from the borders of the colours."""
    inner = np.ones(expected.shape[:2], bool)
    inner[20:28] = inner[:, 28:36] = False
    difference = np.abs(image.astype(int) - expected.astype(int))[inner]
    return image.shape == expected.shape and int(difference.max()) <= tolerance


@pytest.mark.parametrize(
    ("name", "order"), [("rgb", "012"), ("bgr", "210"), ("rgba", "0123"), ("bgra", "2103")]
)
def test_channel_orders(name: str, order: str) -> None:
    with_alpha = np.dstack([CORNERS, np.full((48, 64, 1), 9, np.uint8)])
    data = with_alpha[..., [int(i) for i in order]].tobytes()
    assert np.array_equal(decode(data, name, 64, 48), CORNERS)
    assert np.array_equal(decode(data, f" {name.upper()}", 64, 48), CORNERS)


def test_rgb_is_not_copied() -> None:
    data = CORNERS.tobytes()
    image = decode(data, "rgb", 64, 48)
    assert np.shares_memory(image, np.frombuffer(data, np.uint8))


def test_gray_becomes_three_channels() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decode(ramp.tobytes(), "gray", 16, 16), np.dstack([ramp] * 3))


@pytest.mark.parametrize("name", ["yuv420", "nv12"])
def test_yuv_of_known_colours(name: str) -> None:
    """BT.601 in video range: (Y, Cb, Cr) of red, by the standard's own numbers."""
    luma, blue, red = 81, 90, 240
    chroma = [blue] * 4 + [red] * 4 if name == "yuv420" else [blue, red] * 4
    data = bytes([luma] * 16 + chroma)
    assert np.abs(decode(data, name, 4, 4).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(("name", "tolerance"), [("png", 0), ("jpeg", 12), ("webp", 12)])
def test_compressed_pictures(name: str, tolerance: int) -> None:
    options = {"quality": 95} if name != "png" else {}
    data = save(Image.fromarray(CORNERS), name, **options)
    assert close_to(decode(data, name), CORNERS, tolerance)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_png_of_every_kind(mode: str) -> None:
    if mode == "I;16":
        deep = (np.arange(48 * 64).reshape(48, 64) % 256).astype(np.uint16) * 257
        image, expected = Image.fromarray(deep), np.dstack([(deep >> 8).astype(np.uint8)] * 3)
    else:
        image = Image.fromarray(CORNERS).convert(mode)
        expected = np.asarray(image.convert("RGB"))
    assert close_to(decode(save(image, "png"), "png"), expected, 1)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_other_colours(mode: str) -> None:
    image = Image.fromarray(CORNERS).convert(mode)
    assert close_to(decode(save(image, "jpeg"), "jpg"), np.asarray(image.convert("RGB")), 30)


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("lossless", [True, False])
def test_webp_of_every_kind(alpha: bool, lossless: bool) -> None:
    image = Image.fromarray(CORNERS).convert("RGBA" if alpha else "RGB")
    data = save(image, "webp", lossless=lossless, quality=95)
    assert webp_size(data) == (64, 48)
    assert close_to(decode(data, "webp"), CORNERS, 0 if lossless else 12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = save(Image.fromarray(CORNERS), "jpeg", exif=exif, quality=95)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(stored))).convert("RGB"))
    assert jpeg_orientation(stored) == orientation
    image = decode(stored, "jpeg")
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 3


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
    ],
)
def test_broken_exif_is_upright(exif: bytes) -> None:
    data = save(Image.fromarray(CORNERS), "jpeg")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert jpeg_orientation(data[:2] + segment + data[2:]) == 1


def test_headers_of_other_data() -> None:
    for data in (b"", b"\x89PNG", b"RIFF" + b"\0" * 40, b"\xff\xd8"):
        with pytest.raises(HeaderError):
            png_size(data)
        with pytest.raises(HeaderError):
            webp_size(data)
        assert jpeg_orientation(data) == 1


def test_errors_contain_the_limit() -> None:
    limits = Limits(max_pixels=1000, max_side=100)
    for width, height, expected in ((32, 32, "1000 pixels"), (101, 1, "limit of 100")):
        frame = EncodedFrame(b"1" * width * height, "gray", width, height)
        with pytest.raises(InputTooLargeError, match=expected):
            decode_picture(frame, limits)
    with pytest.raises(FrameSizeError, match="height must be positive, not -1"):
        limits.check(1, -1)


@pytest.mark.parametrize(
    ("frame", "error", "field"),
    [
        (EncodedFrame(b"1", ""), MissingFieldError, "format"),
        (EncodedFrame(b"", "jpeg", data_field="image_data"), MissingFieldError, "image_data"),
        (EncodedFrame(b"1", "tiff"), UnknownFormatError, "format"),
        (EncodedFrame(b"1", "h264"), UnknownFormatError, "format"),
        (EncodedFrame(b"1", "rgb"), FrameSizeError, "width"),
        (EncodedFrame(b"1", "rgb", 1, 1), FrameSizeError, "frame_data"),
        (EncodedFrame(b"1", "png"), UndecodableImageError, "frame_data"),
    ],
)
def test_refused_frames(frame: EncodedFrame, error: type[ServiceError], field: str) -> None:
    with pytest.raises(error) as raised:
        decode_picture(frame, LIMITS)
    assert raised.value.field == field


def test_errors_in_a_stream_name_the_frame() -> None:
    decoder = FrameDecoder(LIMITS)
    with pytest.raises(UndecodableImageError, match=r"frame 3 of the stream \(frame_number 9\): "):
        list(decoder.decode(EncodedFrame(b"1", "png", number=9, position=3)))


def test_frames_that_need_no_decoding() -> None:
    decoder = FrameDecoder(LIMITS)
    assert decoder.needs_no_decoding(EncodedFrame(b"", " RGB"))
    assert decoder.needs_no_decoding(EncodedFrame(b"", "raw"))
    assert not decoder.needs_no_decoding(EncodedFrame(b"", "bgr"))


def test_which_formats_need_every_frame() -> None:
    assert is_video("H264")
    assert is_video(" vp8")
    assert not is_video("jpeg")
