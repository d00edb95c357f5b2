"""Video files: what is decoded of them, and what is refused before."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from shared.errors import (
    CallCancelledError,
    InputTooLargeError,
    InvalidArgumentError,
    MissingFieldError,
)
from tests.support.video_files import decoded, pictures, video
from text_svc.worker.media.video_files import VideoFile

RUNNING = threading.Event()


@pytest.mark.parametrize(
    ("kind", "codec", "pixels"),
    [
        ("mp4", "libx264", "yuv420p"),
        ("mp4", "mpeg4", "yuv420p"),
        ("webm", "libvpx", "yuv420p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("matroska", "libx264", "yuv420p"),
        ("avi", "mjpeg", "yuvj420p"),
        ("mpegts", "mpeg2video", "yuv420p"),
        ("flv", "flv1", "yuv420p"),
        ("gif", "gif", "rgb8"),
    ],
)
def test_kinds(kind: str, codec: str, pixels: str) -> None:
    data = video(pictures(9), kind, codec.replace("flv1", "flv"), pixels)
    file, wanted = VideoFile(data, 100), decoded(data)
    assert file.count == len(wanted) == 9
    found = list(file.frames([0, 4, 4, 8], RUNNING))
    for frame, index in zip(found, (0, 4, 4, 8), strict=True):
        assert np.array_equal(frame, wanted[index])


def test_a_file_that_was_cut_off_gives_what_is_there() -> None:
    data = video(pictures(30), "mpegts", "mpeg2video")
    file = VideoFile(data[: len(data) // 2], 100)
    found = list(file.frames([0, file.count + 5], RUNNING))
    assert len(found) == 2
    assert np.array_equal(found[0], decoded(data)[0])


def test_what_is_no_video() -> None:
    with pytest.raises(MissingFieldError, match="data is empty"):
        VideoFile(b"", 10)
    for data in (b"x" * 1000, b"#EXTM3U\nfile:///etc/passwd\n"):
        with pytest.raises(InvalidArgumentError, match="is not a MP4, WebM"):
            VideoFile(data, 10)


def test_a_codec_that_is_not_on_the_list() -> None:
    data = video(pictures(2), "matroska", "ffv1")
    with pytest.raises(InvalidArgumentError, match="cannot be decoded as video"):
        VideoFile(data, 10)


def test_too_many_frames() -> None:
    file = VideoFile(video(pictures(12)), 10)
    assert len(list(file.frames([9], RUNNING))) == 1
    with pytest.raises(InputTooLargeError, match=r"11 frames of video .* the limit is 10"):
        list(file.frames([0, 10], RUNNING))


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video(pictures(2))
    monkeypatch.setattr("text_svc.worker.media.video_files.MAX_FRAME_PIXELS", 3000)
    with pytest.raises(InputTooLargeError, match="64 x 48 pixels; the limit is 3000 pixels"):
        VideoFile(data, 10)


def test_a_caller_who_has_gone() -> None:
    gone = threading.Event()
    gone.set()
    with pytest.raises(CallCancelledError):
        list(VideoFile(video(pictures(5)), 10).frames([4], gone))


def test_a_table_of_endless_packets_is_counted_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("text_svc.worker.media.video_files.MAX_COUNTED", 4)
    data = video(pictures(9))
    assert VideoFile(data, 3).count == 4
    assert VideoFile(data, 6).count == 7, "so that the last frame is over the limit"
    assert VideoFile(data, 100).count == 9
