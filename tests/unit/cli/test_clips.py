from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cli import clips
from cli.commands.vision import Flow
from cli.drawing import DRAWINGS
from cli.failures import CliError
from cli.load import Counts, percentile, run
from cli.tasks import TASKS
from ml import mediapipe_pb2, mediapipe_pb2_grpc
from tools import vision_clips


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """12 frames of 64 x 47 pixels, 24 a second."""
    writer = clips.VideoWriter(tmp_path / "video.mp4", Fraction(24))
    for number in range(12):
        writer.write(np.full((47, 64, 3), 20 * number, np.uint8))
    writer.close()
    return tmp_path / "video.mp4"


def test_frames_come_back_with_their_times(video: Path) -> None:
    with clips.Video(str(video)) as source:
        frames = list(source)
        assert (source.fps, source.frames) == (24, 12)
    assert [frame.milliseconds for frame in frames] == [round(n * 1000 / 24) for n in range(12)]
    assert {frame.image.shape for frame in frames} == {(46, 64, 3)}
    means = [float(frame.image.mean()) for frame in frames]
    assert means == pytest.approx([20 * number for number in range(12)], abs=4)


def test_a_video_that_is_cut_off_has_the_frames_before(video: Path, tmp_path: Path) -> None:
    webm = tmp_path / "video.ts"
    with clips.Video(str(video)) as source:
        writer = clips.VideoWriter(webm, Fraction(24))
        for frame in source:
            writer.write(frame.image)
        writer.close()
    webm.write_bytes(webm.read_bytes()[:-300])
    with clips.Video(str(webm)) as source:
        assert 0 < len(list(source)) <= 12


def test_pictures_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"x\.png is not a picture that can be decoded"):
        clips.decode_picture(b"\x89PNG\r\n\x1a\n" + bytes(20), "x.png")
    with pytest.raises(CliError, match=r"must end with \.png, \.jpg or \.webp"):
        clips.write_picture(tmp_path / "x.txt", vision_clips.drawn_hand())
    with pytest.raises(CliError, match=r"must end with \.png, \.jpg or \.webp"):
        clips.write_picture(tmp_path / "x.\udcff", vision_clips.drawn_hand())
    with pytest.raises(CliError, match="cannot write"):
        clips.VideoWriter(tmp_path / "x.nothing", Fraction(24)).write(vision_clips.drawn_hand())


def test_a_file_stays_until_there_is_a_frame(video: Path) -> None:
    before = video.read_bytes()
    writer = clips.VideoWriter(video, Fraction(24))
    writer.close()
    assert video.read_bytes() == before
    writer.write(vision_clips.drawn_hand())
    writer.close()
    assert video.read_bytes() != before


def test_every_task_has_an_rpc_and_a_drawing() -> None:
    assert TASKS.keys() == DRAWINGS.keys()
    service = mediapipe_pb2.DESCRIPTOR.services_by_name["MediapipeService"]
    for task in TASKS.values():
        for rpc in filter(None, (task.stream, task.picture)):
            assert rpc in service.methods_by_name
    assert mediapipe_pb2_grpc.MediapipeServiceStub


def answer(number: int) -> SimpleNamespace:
    return SimpleNamespace(frame_number=number, timing=SimpleNamespace(inference_ms=2.0))


def test_frames_in_flight_have_a_limit(video: Path) -> None:
    """Each answer makes room for one frame, and one of a later frame for all before it."""
    with clips.Video(str(video)) as source:
        flow = Flow(source, 12, {"look_ahead": "2"}, None, keep=True)
        requests = flow.requests()
        sent = [next(requests) for _ in range(10)]
        assert [request.frame_number for request in sent] == list(range(10))
        assert dict(sent[0].metadata) == {"look_ahead": "2"}
        assert not sent[1].metadata
        assert not flow._places.acquire(blocking=False)
        kept = flow.answered(answer(1))
        assert kept is not None
        assert kept.milliseconds == 42
        assert [request.frame_number for request in requests] == [10, 11]
        assert flow.answered(answer(99)) is None
        assert (flow.count, flow.inference_ms) == (2, 4.0)


def test_percentiles() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.95)) == (50, 95)
    assert (percentile([7.0], 0.95), percentile([], 0.5)) == (7.0, 0.0)


async def test_callers_call_until_time_is_over() -> None:
    running, most = 0, 0

    async def call(counts: Counts, end: float) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        counts.units += 3
        counts.calls += 1
        import asyncio

        await asyncio.sleep(0.01)
        running -= 1

    counts, seconds = await run(call, callers=4, seconds=0.05)
    assert most == 4
    assert counts.calls >= 4
    assert counts.units == 3 * counts.calls
    assert seconds >= 0.05


async def test_a_call_that_fails_ends_the_measuring() -> None:
    async def call(counts: Counts, end: float) -> None:
        raise CliError("no")

    with pytest.raises(CliError, match="no"):
        await run(call, callers=3, seconds=60)
