"""The policy "latest" alone: which frame runs, which is replaced, and what must not be skipped."""

from __future__ import annotations

import pytest

from tests.unit.vision.streams.fakes import FakeStages, frame
from vision_svc.frames.types import SkippedFrame, SkipReason
from vision_svc.streams.latest import MAX_UNDECODED, MAX_UNTAKEN, LatestFrame, LatestSlot
from vision_svc.streams.stages import End


class World:
    """The policy with its fake stages and a count of what it drops."""

    def __init__(self) -> None:
        self.stages = FakeStages()
        self.dropped = 0
        self.policy = LatestFrame(self.stages, self._drop)  # type: ignore[arg-type]

    def _drop(self) -> None:
        self.dropped += 1


@pytest.fixture
async def world() -> World:
    return World()


async def test_one_frame_runs_and_the_newest_waits(world: World) -> None:
    frames = [frame(number) for number in range(5)]
    for each in frames[:2]:
        world.policy.put(each)
    assert len(world.stages.turns) == 1
    assert world.stages.next_turn() is frames[1]  # until its turn came, it could be replaced
    assert world.dropped == 1
    for each in frames[2:]:
        assert world.policy.has_room()
        world.policy.put(each)
    assert world.dropped == 3
    assert not world.stages.turns  # one frame still runs
    world.policy.answer_ready()
    assert world.stages.next_turn() is frames[4]


async def test_answers_that_nobody_takes_hold_up_the_task(world: World) -> None:
    for number in range(MAX_UNTAKEN):
        world.policy.put(frame(number))
        world.stages.next_turn()
        world.policy.answer_ready()
    last = frame(9)
    world.policy.put(last)
    assert not world.stages.turns
    world.policy.answer_taken()
    assert world.stages.next_turn() is last


async def test_a_skipped_frame_replaces_no_picture(world: World) -> None:
    world.policy.put(frame(0, "h264"))
    world.stages.decoded(frame(0))
    assert world.stages.next_turn() == frame(0)  # it runs
    lost = SkippedFrame(frame(1), SkipReason.LOST)
    world.policy.put(frame(1, "h264"))
    world.stages.decoded(lost)
    assert world.dropped == 0
    world.policy.put(frame(2, "h264"))
    world.stages.decoded(frame(2))  # a picture replaces it
    assert world.dropped == 1
    world.policy.put(frame(3, "h264"))
    world.stages.decoded(SkippedFrame(frame(3), SkipReason.LOST))
    assert world.dropped == 2
    world.policy.answer_ready()
    assert world.stages.next_turn() == frame(2)


async def test_all_video_is_decoded_and_pictures_are_replaced(world: World) -> None:
    video = [frame(number, "h264") for number in range(MAX_UNDECODED)]
    for each in video:
        assert world.policy.has_room()
        world.policy.put(each)
    assert not world.policy.has_room()
    pictures = [frame(number) for number in range(2)]
    world.stages.decoded(pictures[0])
    assert world.policy.has_room()
    world.stages.decoded(pictures[1])
    assert world.dropped == 1
    assert world.stages.next_turn() is pictures[1]
    world.policy.put(frame(7, "rgb"))  # it must not overtake what the decoder holds
    assert len(world.stages.decoding) == 1


async def test_the_end_replaces_no_frame(world: World) -> None:
    last, end = frame(3), End()
    world.policy.put(last)
    world.policy.put(end)
    assert world.stages.next_turn() is last
    world.policy.answer_ready()
    assert world.stages.next_turn() is end
    assert world.dropped == 0


def test_the_slot_keeps_the_newest_item_and_the_first_end() -> None:
    slot: LatestSlot[str] = LatestSlot()
    assert not slot
    assert [slot.put("a"), slot.put("b")] == [False, True]
    slot.put_end("end")
    slot.put_end("another end")
    assert not slot.put("late")
    assert [slot.take(), slot.take()] == ["b", "end"]
    with pytest.raises(LookupError):
        slot.take()
