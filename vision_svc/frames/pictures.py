"""Compressed pictures: JPEG by libjpeg-turbo, PNG and WebP by OpenCV.

The result is upright (the Exif orientation is applied), with 8 bits and three channels; an alpha
channel is dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg

from shared.errors import InputTooLargeError, UndecodableImageError
from vision_svc.frames.headers import (
    UPRIGHT,
    HeaderError,
    jpeg_orientation,
    jpeg_scans,
    png_size,
    webp_size,
)
from vision_svc.frames.types import (
    EncodedFrame,
    Limits,
    Rgb,
    as_rgb,
)

# A progressive JPEG of a few kilobytes can require thousands of passes over the whole picture.
MAX_JPEG_SCANS = 100
_JPEG_SCAN = b"\xff\xda"
# In libjpeg's warnings of a file, or a part of one, that ends too early.
_PREMATURE = "remature end"

# The steps that turn a picture of each Exif orientation upright: transpose, then flip (OpenCV's
# flip codes).
_UPRIGHT_STEPS: dict[int, tuple[bool, int | None]] = {
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}


def _upright(image: Rgb, orientation: int) -> Rgb:
    if orientation == UPRIGHT:
        return image
    transpose, flip = _UPRIGHT_STEPS[orientation]
    turned = cv2.transpose(image) if transpose else image
    return as_rgb(turned if flip is None else cv2.flip(turned, flip))


def _decode_jpeg(data: bytes, limits: Limits) -> Rgb:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    limits.check(width, height)
    scans = data.count(_JPEG_SCAN)
    # Behind the picture there may be a film, as in motion photos, or further pictures.
    if scans > MAX_JPEG_SCANS and (scans := jpeg_scans(data, MAX_JPEG_SCANS + 1)) > MAX_JPEG_SCANS:
        raise InputTooLargeError(
            f"a jpeg of {scans} scans or more exceeds the limit of {MAX_JPEG_SCANS}",
            metadata={"max_jpeg_scans": str(MAX_JPEG_SCANS)},
        )
    if colours not in ("YCbCr", "RGB", "Gray"):
        return _decode_by_opencv(data)  # CMYK, which libjpeg-turbo does not convert to RGB
    return _upright(_decode_leniently(data), jpeg_orientation(data))


def _decode_leniently(data: bytes) -> Rgb:
    """The pixels, if nothing is missing. Other oddities do no harm: many cameras write padding
    before restart markers, of which libjpeg warns as of "extraneous bytes".
    """
    try:
        return as_rgb(simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError as error:
        if _PREMATURE in str(error):
            raise
    return as_rgb(simplejpeg.decode_jpeg(data, "RGB", strict=False))


def _decode_by_opencv(data: bytes) -> Rgb:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError("OpenCV cannot decode it")
    return as_rgb(image)


def _decode_png(data: bytes, limits: Limits) -> Rgb:
    limits.check(*png_size(data))
    return _decode_by_opencv(data)


def _decode_webp(data: bytes, limits: Limits) -> Rgb:
    limits.check(*webp_size(data))
    return _decode_by_opencv(data)


_DECODERS: dict[str, Callable[[bytes, Limits], Rgb]] = {
    "jpeg": _decode_jpeg,
    "png": _decode_png,
    "webp": _decode_webp,
}
PICTURE_FORMATS = frozenset(_DECODERS)


def encode_picture(image: Rgb, format_name: str, jpeg_quality: int) -> bytes:
    """Compresses pixels into one of `PICTURE_FORMATS`.

    Args:
        image: the pixels.
        format_name: the format; webp is lossless, as png is.
        jpeg_quality: from 1 to 100.
    """
    if format_name == "jpeg":
        pixels = np.ascontiguousarray(image)
        encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=jpeg_quality, colorspace="RGB")
        return encoded
    done, data = cv2.imencode(f".{format_name}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done, f"OpenCV writes {format_name}"
    return data.tobytes()


def decode_compressed(frame: EncodedFrame, format_name: str, limits: Limits) -> Rgb:
    """Decodes a frame in one of `PICTURE_FORMATS`.

    Raises:
        UndecodableImageError: the data is truncated, damaged or of another format.
        InputTooLargeError: the size in the header exceeds a limit.
    """
    try:
        return _DECODERS[format_name](bytes(frame.data), limits)
    except (ValueError, HeaderError, cv2.error) as error:
        raise UndecodableImageError(
            f"the {len(frame.data)} bytes are not a complete {format_name} picture",
            field=frame.data_field,
        ) from error
