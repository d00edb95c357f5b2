"""A camera's video of which 3 % of the packets never arrive, through Envoy.

LOST_FRAMES=18000 runs ten minutes at 30 frames a second instead of one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from tests.integration.vision.conftest import Vision

FRAMES = int(os.environ.get("LOST_FRAMES", "1800"))


def _encoded(options: str) -> Iterator[bytes]:
    codec = av.CodecContext.create("libx264", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 48, "yuv420p", Fraction(1, 30)
    codec.options = {"preset": "veryfast", "x264-params": options}
    noise = np.random.default_rng(2).integers(0, 256, (48, 64, 3), np.uint8)
    for number in range(FRAMES):
        frame = av.VideoFrame.from_ndarray(np.roll(noise, number, 1), format="rgb24")
        frame.pts = number
        yield from map(bytes, codec.encode(frame))
    yield from map(bytes, codec.encode(None))


def _shown_by_pyav(datas: list[bytes]) -> set[int]:
    codec = av.CodecContext.create("h264", "r")
    codec.thread_count = 1
    shown = set()
    for number, data in enumerate([*datas, b""]):
        packet = av.Packet(data) if data else None
        if packet:
            packet.pts = number
        shown.update(frame.pts for frame in codec.decode(packet) if not frame.is_corrupt)
    return shown


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bframes", [0, 3])
def test_a_video_with_lost_packets(vision: Vision, bframes: int) -> None:
    luck = random.Random(1)
    packets = list(_encoded(f"keyint=20:min-keyint=20:scenecut=0:bframes={bframes}:b-adapt=0"))
    sent = [packets[0], *(data for data in packets[1:] if luck.random() > 0.03)]
    rss = vision.rss()
    answers = list(
        vision.stub.StreamFaceDetection(
            pb.VideoFrame(frame_data=data, format="h264", frame_number=number, timestamp_ms=number)
            for number, data in enumerate(sent)
        )
    )
    numbers = [answer.frame_number for answer in answers]
    shown = {answer.frame_number for answer in answers if not answer.skipped}
    if bframes:
        assert sorted(numbers) == list(range(len(sent)))
        assert shown <= _shown_by_pyav(sent)
        assert len(shown) > 0.9 * len(sent)
    else:
        assert numbers == list(range(len(sent)))
        assert shown == _shown_by_pyav(sent)
    assert len(shown) < len(sent)
    assert vision.rss() - rss < 100 << 20
