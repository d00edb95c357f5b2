"""Videos made in the test, and decoded beside the service."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import numpy.typing as npt


def pictures(count: int, height: int = 48, width: int = 64) -> list[npt.NDArray[np.uint8]]:
    """Frames that all differ: a square that moves over a picture of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    frames = []
    for index in range(count):
        frame = np.kron(noise, np.ones((height // 6, width // 8, 1), np.uint8))
        frame[index % height :, : 10 + index % width] = (255 - 5 * index) % 256
        frames.append(frame)
    return frames


def video(
    frames: list[npt.NDArray[np.uint8]],
    kind: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
) -> bytes:
    """A file of these frames at 10 a second."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def decoded(data: bytes) -> list[npt.NDArray[Any]]:
    """All frames of a file."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
