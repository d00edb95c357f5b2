"""For any bytes, the decoder returns pixels within the limits or raises an error with a reason.

The examples are the same in each run, so that a failure means a change and not chance.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.errors import InvalidArgumentError, ResourceExhaustedError
from tests.support.vision_frames import encode_video
from vision_svc.frames.decoder import FrameDecoder
from vision_svc.frames.types import (
    EncodedFrame,
    Limits,
    SkippedFrame,
)

LIMITS = Limits(max_pixels=1 << 20, max_side=4096)
NAMES = (
    *("rgb", "bgr", "rgba", "bgra", "gray", "yuv420", "nv12"),
    *("jpeg", "png", "webp", "h264", "hevc", "av1", "vp8"),
)
NOISE = np.random.default_rng(7).integers(0, 256, (48, 64, 3), np.uint8)


def _valid(name: str) -> bytes:
    if name in ("h264", "hevc", "av1", "vp8"):
        return encode_video([NOISE], name)[0][0][1]
    if name in ("jpeg", "png", "webp"):
        file = io.BytesIO()
        Image.fromarray(NOISE).save(file, name)
        return file.getvalue()
    return NOISE.tobytes()


VALID = {name: _valid(name) for name in NAMES}


def check(frames: list[EncodedFrame]) -> None:
    decoder = FrameDecoder(LIMITS)
    try:
        decoded = [each for frame in frames for each in decoder.decode(frame)]
        decoded += decoder.flush()
    except (InvalidArgumentError, ResourceExhaustedError):
        return  # a reason; anything else fails the test
    assert len(decoded) <= len(frames)
    for each in decoded:
        if isinstance(each, SkippedFrame):
            assert each.message
            continue
        height, width, channels = each.image.shape
        assert channels == 3
        assert each.image.dtype == np.uint8
        assert width * height <= LIMITS.max_pixels


sizes = st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 130)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.text(max_size=8) | st.sampled_from(NAMES), st.binary(max_size=400), sizes, sizes)
def test_any_bytes(name: str, data: bytes, width: int, height: int) -> None:
    check([EncodedFrame(data, name, width, height)])


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """A valid frame with some bytes changed, perhaps truncated, perhaps followed by another one."""
    data = bytearray(VALID[name])
    for _ in range(draw(st.integers(1, 6))):
        # The headers, where damage has the most effect, are at the beginning.
        index = draw(st.integers(0, min(60, len(data) - 1)) | st.integers(0, len(data) - 1))
        data[index] = draw(st.integers(0, 255))
    cut = draw(st.integers(0, len(data)) | st.just(len(data)))
    return bytes(data[:cut]) + bytes(data) * draw(st.integers(0, 1))


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "h264", "hevc", "av1", "vp8"])
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_damaged_frames(name: str, data: st.DataObject) -> None:
    frames = [
        EncodedFrame(data.draw(st.just(VALID[name]) | damaged(name)), name, position=position)
        for position in range(1, data.draw(st.integers(2, 5)))
    ]
    check(frames)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(NAMES), min_size=2, max_size=6))
def test_formats_that_change(names: list[str]) -> None:
    check([EncodedFrame(VALID[name], name, 64, 48) for name in names])
