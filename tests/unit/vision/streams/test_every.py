"""The policy "every" alone: nothing is dropped or overtaken, and little is in flight."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.vision.streams.fakes import FakeStages, frame
from vision_svc.streams.every import MAX_IN_FLIGHT, EveryFrame
from vision_svc.streams.stages import End


@pytest.fixture
def stages() -> FakeStages:
    return FakeStages()


@pytest.fixture
def policy(stages: FakeStages) -> EveryFrame:
    def on_drop() -> None:
        raise AssertionError("this policy drops nothing")

    return EveryFrame(stages, on_drop)  # type: ignore[arg-type]


async def test_room_comes_with_an_answer_that_is_taken(
    policy: EveryFrame, stages: FakeStages
) -> None:
    for number in range(MAX_IN_FLIGHT):
        assert policy.has_room()
        policy.put(frame(number, "rgb"))
    waiting = asyncio.create_task(policy.room())
    await asyncio.sleep(0)
    policy.answer_ready()  # the client may be slow
    await asyncio.sleep(0)
    assert not waiting.done()
    policy.answer_taken()
    await asyncio.wait_for(waiting, 10)


def test_frames_run_in_order_and_none_overtakes_another(
    policy: EveryFrame, stages: FakeStages
) -> None:
    first, second, third = frame(0, "jpeg"), frame(1, "rgb"), frame(2, "rgb")
    policy.put(first)
    policy.put(second)  # its bytes are its pixels, but the one before it is not decoded yet
    for each in (first, second):
        assert stages.decoding[0][0] is each
        stages.decoded(each)
    policy.put(third)
    assert not stages.decoding
    assert [stages.next_turn() for _ in range(3)] == [first, second, third]


@pytest.mark.parametrize(("pictures", "room"), [(0, 3), (1, 2), (2, 1), (3, 0), (7, -4)])
def test_a_frame_of_video_may_bring_any_number_of_pictures(
    policy: EveryFrame, stages: FakeStages, pictures: int, room: int
) -> None:
    policy.put(frame(0, "h264"))
    policy.put(frame(1, "h264"))
    items = [frame(number) for number in range(pictures)]
    stages.decoded(*items)
    assert [stages.next_turn() for _ in items] == items
    for _ in range(max(0, room)):
        assert policy.has_room()
        policy.put(frame(2, "h264"))
    assert not policy.has_room()
    for _ in range(-room):
        policy.answer_taken()
        assert not policy.has_room()
    policy.answer_taken()
    assert policy.has_room()


def test_the_end_goes_through_the_decoder(policy: EveryFrame, stages: FakeStages) -> None:
    """It brings what the decoder holds back."""
    end, held = End(), frame(0, "h264")
    policy.put(end)
    assert stages.decoding[0][0] is end
    stages.decoded(held, end)
    assert [stages.next_turn(), stages.next_turn()] == [held, end]
