"""Synthetic pictures, valid and not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from ml import transformers_pb2 as pb


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header declares more pixels than it contains."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"\0" * 100)
    parts = [
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, body)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def picture(seed: int) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 70, 3), np.uint8))


def png(image: Image.Image) -> pb.ImageData:
    """The picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return pb.ImageData(data=file.getvalue())
