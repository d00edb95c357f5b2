"""Video that arrives with gaps: each frame brings its picture or is skipped, and it goes on.

The reference is PyAV, which decodes the same damaged stream in process.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from shared.errors import InvalidArgumentError
from tests.support.vision_frames import encode_video
from vision_svc.frames.decoder import FrameDecoder
from vision_svc.frames.types import (
    DecodedFrame,
    EncodedFrame,
    Limits,
    SkippedFrame,
    SkipReason,
)
from vision_svc.frames.video import Outcome


def _moving(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A camera that pans over a soft pattern."""
    noise = np.random.default_rng(1).integers(0, 255, (height, width + 100, 3), np.uint8)
    wide = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    return [np.ascontiguousarray(wide[:, i % 100 : i % 100 + width]) for i in range(count)]


CLIP = _moving(100)
WAITING, REORDERED, LOST, BAD = (
    SkipReason.WAITING_FOR_KEY_FRAME,
    SkipReason.REORDERED,
    SkipReason.LOST,
    SkipReason.BAD_FRAME,
)
X264 = "keyint=20:min-keyint=20:scenecut=0"
ENCODERS = {
    "no b-frames": ("h264", {"x264-params": f"{X264}:bframes=0"}),
    "slices": ("h264", {"x264-params": f"{X264}:bframes=0:slices=4"}),
    "b-frames": ("h264", {"x264-params": f"{X264}:bframes=3:b-adapt=0"}),
    "open groups": ("h264", {"x264-params": f"{X264}:bframes=3:open-gop=1"}),
    "default": ("h264", {"crf": "23"}),
    "no latency": ("h264", {"tune": "zerolatency"}),
    "refresh": ("h264", {"x264-params": "keyint=20:bframes=0:intra-refresh=1"}),
    "baseline": ("h264", {"profile": "baseline", "x264-params": X264}),
    "hevc": ("hevc", {"x265-params": "keyint=20:bframes=0:log-level=none"}),
    "hevc b-frames": ("hevc", {"x265-params": "keyint=20:bframes=3:log-level=none"}),
    "av1": ("av1", {"preset": "10", "g": "20"}),
    "vp8": ("vp8", {"deadline": "realtime", "g": "20"}),
}
# With these nothing is reordered: all answers come in the order of the frames, at once.
IN_ORDER = ("no b-frames", "slices", "no latency", "refresh", "baseline", "hevc", "av1", "vp8")
_encoded: dict[str, list[bytes]] = {}


def packets(encoder: str) -> list[bytes]:
    name, options = ENCODERS[encoder]
    if encoder not in _encoded:
        _encoded[encoder] = [data for _, data in encode_video(CLIP, name, **options)[0]]
    return _encoded[encoder]


def run(
    datas: Sequence[bytes], name: str, *, skips_bad: bool = False
) -> tuple[list[Outcome], list[int]]:
    """The outcome of all frames, and how many of them were there after each frame."""
    decoder = FrameDecoder(Limits(), skips_bad=skips_bad)
    outcomes: list[Outcome] = []
    counts = []
    for number, data in enumerate(datas):
        outcomes += decoder.decode(EncodedFrame(data, name, number=number, position=number + 1))
        counts.append(len(outcomes))
    return [*outcomes, *decoder.flush()], counts


def by_pyav(datas: Sequence[bytes], name: str) -> dict[int, np.ndarray]:
    """The pictures that PyAV gives, by the number of the packet."""
    codec = av.CodecContext.create({"av1": "libdav1d"}.get(name, name), "r")
    codec.thread_count = 1
    pictures = {}
    for number, data in enumerate([*datas, None]):
        packet = None
        if data is not None:
            packet = av.Packet(data)
            packet.pts, packet.time_base = number, Fraction(1, 1000)
        try:
            frames = codec.decode(packet)
        except av.FFmpegError:
            continue
        pictures.update({f.pts: f.to_ndarray(format="rgb24") for f in frames if not f.is_corrupt})
    return pictures


def reasons(outcomes: Sequence[Outcome]) -> dict[int, SkipReason]:
    return {each.source.number: each.reason for each in outcomes if isinstance(each, SkippedFrame)}


def pictures_of(outcomes: Sequence[Outcome]) -> dict[int, np.ndarray]:
    return {each.source.number: each.image for each in outcomes if isinstance(each, DecodedFrame)}


def test_a_lost_key_frame() -> None:
    sent = packets("no b-frames")
    outcomes, counts = run([*sent[:20], *sent[21:]], "h264")
    assert [each.source.number for each in outcomes] == list(range(len(sent) - 1))
    assert counts == list(range(1, len(sent)))  # each is answered at once
    expected = by_pyav([*sent[:20], *sent[21:]], "h264")
    skipped = reasons(outcomes)
    assert skipped
    assert set(skipped.values()) == {REORDERED}
    assert min(skipped) == 20
    assert max(skipped) < 39  # where the next key frame is
    got = pictures_of(outcomes)
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[number], expected[number]) for number in got)


def test_a_lost_key_frame_among_reordered_frames() -> None:
    """PyAV shows the pictures before it long after, and others never: here they come in order."""
    sent = packets("b-frames")
    outcomes, counts = run([*sent[:20], *sent[21:]], "h264")
    numbers = [each.source.number for each in outcomes]
    assert sorted(numbers) == list(range(len(sent) - 1))
    assert all(number - count <= 3 for number, count in enumerate(counts, 1))
    skipped = reasons(outcomes)
    assert sorted(skipped) == list(range(20, 39))
    assert set(skipped.values()) == {REORDERED, WAITING}
    whole = by_pyav(sent, "h264")
    got = pictures_of(outcomes)
    # All others are as if nothing had been lost.
    for number, image in got.items():
        assert np.array_equal(image, whole[number if number < 20 else number + 1])
    assert numbers.index(19) < numbers.index(20)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_video_that_begins_between_key_frames(encoder: str) -> None:
    name = ENCODERS[encoder][0]
    sent = packets(encoder)[3:]
    outcomes, counts = run(sent, name)
    assert sorted(each.source.number for each in outcomes) == list(range(len(sent)))
    expected, got = by_pyav(sent, name), pictures_of(outcomes)
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[number], expected[number]) for number in got)
    if encoder == "vp8":
        return  # FFmpeg shows pictures without a key frame
    assert set(reasons(outcomes).values()) == {WAITING}
    if encoder in IN_ORDER:
        assert counts == list(range(1, len(sent) + 1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("encoder", ENCODERS)
def test_each_frame_that_arrives_has_an_outcome(encoder: str, seed: int) -> None:
    """3 % of the frames are lost, in some runs many more."""
    name = ENCODERS[encoder][0]
    luck = random.Random(seed)
    share = 0.03 if seed < 3 else 0.2
    sent = [data for data in packets(encoder) if luck.random() > share]
    outcomes, counts = run(sent, name)
    assert sorted(each.source.number for each in outcomes) == list(range(len(sent)))
    expected, got = by_pyav(sent, name), pictures_of(outcomes)
    both = got.keys() & expected.keys()
    assert all(np.array_equal(got[number], expected[number]) for number in both)
    if encoder == "av1":  # in PyAV, dav1d may not recover from a loss
        assert got.keys() >= expected.keys()
    else:
        assert got.keys() <= expected.keys()
    if encoder in IN_ORDER:
        assert encoder == "av1" or got.keys() == expected.keys()
        assert counts == list(range(1, len(sent) + 1))
    else:
        assert len(expected) - len(got) < 0.1 * len(sent)
        assert all(number - count <= 5 for number, count in enumerate(counts, 1))
    assert BAD not in reasons(outcomes).values()


def test_a_key_frame_that_cannot_be_decoded() -> None:
    """The frames that need it are skipped, too."""
    sent = [*packets("no b-frames")]
    sent[20] = b"\0\0\1\x65" + b"1" * 900
    with pytest.raises(InvalidArgumentError, match=r"frame 21 of the stream \(frame_number 20\)"):
        run(sent, "h264")
    outcomes, _ = run(sent, "h264", skips_bad=True)
    assert [each.source.number for each in outcomes] == list(range(len(sent)))
    assert reasons(outcomes) == {20: BAD} | dict.fromkeys(range(21, 40), WAITING)


@pytest.mark.parametrize("encoder", ["no b-frames", "b-frames", "vp8"])
def test_bad_frames_are_skipped_if_asked(encoder: str) -> None:
    name = ENCODERS[encoder][0]
    sent = [*packets(encoder)]
    sent[25] = b"no video"
    sent[26] = b""
    outcomes, _ = run(sent, name, skips_bad=True)
    assert sorted(each.source.number for each in outcomes) == list(range(len(sent)))
    skipped = reasons(outcomes)
    assert {number: skipped[number] for number in (25, 26)} == {25: BAD, 26: BAD}
    messages = [each.message for each in outcomes if isinstance(each, SkippedFrame)]
    assert all(message for message in messages)
    with pytest.raises(InvalidArgumentError, match="frame 26 of the stream"):
        run(sent, name)


def test_bad_pictures_are_skipped_if_asked() -> None:
    good = cv2.imencode(".jpg", CLIP[0])[1].tobytes()
    sent = [good, good[: len(good) // 2], b"", good]
    outcomes, _ = run(sent, "jpeg", skips_bad=True)
    assert reasons(outcomes) == {1: BAD, 2: BAD}
    assert [each.source.number for each in outcomes] == [0, 1, 2, 3]
    with pytest.raises(InvalidArgumentError, match="frame 2 of the stream"):
        run(sent, "jpeg")


def test_slices_that_are_lost() -> None:
    """A frame of which only some slices have arrived is a bad one, as it is without losses."""
    sent = [*packets("slices")]
    first = sent[30].index(b"\0\0\1\x41", 10)
    second = sent[30].index(b"\0\0\1\x41", first + 4)
    sent[30] = sent[30][:first] + sent[30][second:]
    outcomes, _ = run(sent, "h264", skips_bad=True)
    assert reasons(outcomes) == {30: BAD}


def test_a_first_frame_of_which_a_part_is_missing() -> None:
    sent = [*packets("no b-frames")]
    sent[0] = sent[0][: -len(sent[0]) // 4]
    with pytest.raises(InvalidArgumentError, match="frame 1 of the stream"):
        run(sent, "h264")


def test_another_size_without_its_key_frame() -> None:
    small = [data for _, data in encode_video(_moving(30, 32, 48), "h264", tune="zerolatency")[0]]
    start = small[0].index(b"\0\0\1\x65")
    headers = small[0][:start]
    sent = [*packets("no b-frames")[:10], headers + small[1], *small[2:10], *small]
    outcomes, _ = run(sent, "h264")
    assert sorted(each.source.number for each in outcomes) == list(range(len(sent)))
    assert reasons(outcomes).keys() == set(range(10, 19))
