"""h264 and vp8: every picture is paired with the frame that contained it."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from shared.errors import InputTooLargeError, InvalidArgumentError
from tests.support.vision_frames import encode_video
from vision_svc.frames.decoder import FrameDecoder
from vision_svc.frames.types import (
    DecodedFrame,
    EncodedFrame,
    Limits,
)
from vision_svc.frames.video import Outcome

# Each picture has its own shade of gray, which identifies it.
CLIP = [np.full((64, 96, 3), 20 + 7 * number, np.uint8) for number in range(30)]


def decode(packets: list[tuple[int, bytes]], name: str) -> list[DecodedFrame]:
    """All pictures. Frame numbers are in the order of sending, timestamps in that of display."""
    decoder = FrameDecoder(Limits())
    decoded: list[Outcome] = []
    for position, (shown, data) in enumerate(packets, 1):
        frame = EncodedFrame(data, name, timestamp_ms=shown, number=position, position=position)
        decoded += decoder.decode(frame)
    decoded += decoder.flush()
    assert all(isinstance(each, DecodedFrame) for each in decoded)
    return cast("list[DecodedFrame]", decoded)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264", {"bf": "3", "b-adapt": "0"}),
        ("h264", {"bf": "0"}),
        ("h264", {"tune": "zerolatency"}),
        ("hevc", {"x265-params": "bframes=3:b-adapt=0:log-level=none", "crf": "18"}),
        ("hevc", {"x265-params": "bframes=0:log-level=none", "crf": "18"}),
        ("av1", {"preset": "10", "crf": "20"}),
        ("vp8", {"deadline": "realtime"}),
        ("vp8", {"deadline": "good", "auto-alt-ref": "1", "lag-in-frames": "10"}),
    ],
)
def test_pictures_and_frames_match(name: str, options: dict[str, str]) -> None:
    packets, _ = encode_video(CLIP, name, **options)
    decoded = decode(packets, name)
    assert [frame.source.timestamp_ms for frame in decoded] == list(range(len(CLIP)))
    for frame in decoded:
        expected = 20 + 7 * frame.source.timestamp_ms
        assert abs(float(frame.image.mean()) - expected) < 3
    assert len({frame.source.number for frame in decoded}) == len(CLIP)


def test_reordered_frames_really_were() -> None:
    packets, _ = encode_video(CLIP, "h264", **{"bf": "3", "b-adapt": "0"})
    shown = [number for number, _ in packets]
    assert shown != sorted(shown)


def test_without_reordering_nothing_is_held_back() -> None:
    packets, _ = encode_video(CLIP, "h264", tune="zerolatency")
    decoder = FrameDecoder(Limits())
    for number, (_, data) in enumerate(packets):
        (decoded,) = decoder.decode(EncodedFrame(data, "h264", number=number))
        assert decoded.source.number == number
    assert list(decoder.flush()) == []


@pytest.mark.parametrize("name", ["h264", "vp8"])
def test_a_video_over_the_limit(name: str) -> None:
    packets, _ = encode_video(CLIP[:2], name)
    decoder = FrameDecoder(Limits(max_pixels=1000))
    with pytest.raises(InputTooLargeError, match="96 x 64 exceeds the limit of 1000 pixels"):
        list(decoder.decode(EncodedFrame(packets[0][1], name)))


def sent(name: str, datas: list[bytes]) -> list[EncodedFrame]:
    return [
        EncodedFrame(data, name, number=position, position=position)
        for position, data in enumerate(datas, 1)
    ]


@pytest.mark.parametrize(
    "bad",
    [
        EncodedFrame(b"\0\0\1\x65" + b"1" * 900, "h264", number=77, position=8),
        EncodedFrame(b"no start code", "h264", number=77, position=8),
        EncodedFrame(b"half a jpeg", "jpeg", number=77, position=8),
        EncodedFrame(b"1", "tiff", number=77, position=8),
    ],
    ids=["damaged", "no-h264", "another-format", "unknown-format"],
)
def test_pictures_held_back_come_before_the_error_of_a_later_frame(bad: EncodedFrame) -> None:
    packets, _ = encode_video(CLIP[:7], "h264", **{"bf": "3", "b-adapt": "0"})
    decoder = FrameDecoder(Limits())
    frames = sent("h264", [data for _, data in packets])
    decoded = [picture for frame in frames for picture in decoder.decode(frame)]
    assert len(decoded) < len(CLIP[:7])
    with pytest.raises(InvalidArgumentError, match=r"frame 8 of the stream \(frame_number 77\)"):
        decoded.extend(decoder.decode(bad))
    assert {picture.source.number for picture in decoded} == set(range(1, 8))
