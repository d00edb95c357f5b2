"""The format of a picture whose caller names none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from shared.errors import (
    FrameSizeError,
    MissingFieldError,
    ServiceError,
    UndecodableImageError,
)
from vision_svc.frames.headers import told_format


@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("size", [(0, 0), (6, 5), (-1, 7)])
def test_pictures_are_told_by_their_bytes(name: str, size: tuple[int, int]) -> None:
    data = cv2.imencode(f".{name}", np.zeros((5, 6, 3), np.uint8))[1].tobytes()
    assert told_format(memoryview(data), *size) == name


def test_bytes_of_the_right_count_are_rgb_whatever_they_say() -> None:
    assert told_format(b"\xff\xd8\xff" * 4, 2, 2) == "rgb"


@pytest.mark.parametrize(
    ("data", "width", "height", "error", "words"),
    [
        (b"", 2, 2, MissingFieldError, "template_data is empty"),
        (b"1" * 11, 2, 2, FrameSizeError, "2 x 2 in rgb is 12 bytes, not 11"),
        (b"1" * 12, -2, -2, FrameSizeError, "must be positive, not -2 and -2"),
        (b"1" * 12, 2, 0, FrameSizeError, "not 2 and 0"),
        (b"1" * 12, 0, 0, UndecodableImageError, "must be a jpeg, png or webp picture, or rgb"),
        (b"RIFF1234WAVE", 0, 0, UndecodableImageError, "12 bytes of template_data"),
    ],
)
def test_what_is_refused(
    data: bytes, width: int, height: int, error: type[ServiceError], words: str
) -> None:
    with pytest.raises(error, match=words) as refused:
        told_format(data, width, height, what="template")
    assert refused.value.field == "template_data"
