"""Wanted models come back by themselves; hopeless ones are left alone until asked for."""

from __future__ import annotations

import asyncio

import pytest

from ml.internal import worker_pb2 as pb
from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.reconciler import HEALTHY_SECONDS
from shared.errors import (
    InvalidModelError,
    OutOfMemoryError,
    ProviderUnavailableError,
    ServiceError,
)
from tests.support.waiting import until
from tests.unit.model_mgmt.conftest import Plane

DESIRED = DesiredModel("org/name", "text-generation", {"dtype": "float32"})


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Rounds:
    """A reconciler that is driven by hand."""

    def __init__(self, plane: Plane) -> None:
        self.clock = Clock()
        self.plane = plane
        self.reconciler = plane.reconciler(0.01, clock=self.clock)

    async def round(self) -> None:
        """One round, and the end of what it has begun."""
        await self.reconciler.round()
        await until(lambda: not self.reconciler._running)

    @property
    def tries(self) -> int:
        return len(self.plane.first.loads)


@pytest.fixture
def rounds(plane: Plane) -> Rounds:
    return Rounds(plane)


async def test_a_worker_that_lost_its_models_gets_them_again(plane: Plane, rounds: Rounds) -> None:
    await plane.lifecycle.load(DESIRED)
    plane.second.models.clear()
    await rounds.round()
    assert set(plane.second.models) == {DESIRED.model_id}
    assert dict(plane.second.loads[-1].options) == {"dtype": "float32"}
    assert rounds.tries == 1  # the other replica had it all the time


async def test_models_that_are_not_desired_are_not_touched(plane: Plane, rounds: Rounds) -> None:
    await plane.lifecycle.load(DESIRED)
    await plane.desired.remove(DESIRED.model_id)
    plane.second.models.clear()
    await rounds.round()
    assert not plane.second.models
    assert set(plane.first.models) == {DESIRED.model_id}


async def test_a_model_of_a_newer_version_does_not_hold_up_the_others(
    plane: Plane, rounds: Rounds
) -> None:
    await plane.desired.put(DesiredModel("a/newer", "time-travel"))
    await plane.desired.put(DESIRED)
    await rounds.round()
    assert set(plane.first.models) == {DESIRED.model_id}


async def test_tries_become_rarer_and_end(plane: Plane, rounds: Rounds) -> None:
    await plane.desired.put(DESIRED)
    plane.first.failures = [InvalidModelError(f"broken {i}") for i in range(9)]
    await rounds.round()
    await rounds.round()
    assert rounds.tries == 1
    rounds.clock.now = 2.0
    await rounds.round()
    assert rounds.tries == 2
    rounds.clock.now += 3.9
    await rounds.round()
    assert rounds.tries == 2
    rounds.clock.now += 0.1
    await rounds.round()
    assert rounds.tries == 3
    assert rounds.reconciler.failed() == {DESIRED.model_id: "broken 2"}
    rounds.clock.now += 1e6
    await rounds.round()
    assert rounds.tries == 3
    rounds.reconciler.forgive(DESIRED.model_id)
    await rounds.round()
    assert rounds.tries == 4
    assert plane.desired.all() == [DESIRED]


async def test_a_replica_is_told_once_even_that_nothing_comes_back(
    plane: Plane, rounds: Rounds
) -> None:
    """It may have let itself in while there was no control plane."""
    plane.first.admitted = True
    await rounds.round()
    assert plane.first.was_told
    assert plane.first.told == []


async def test_a_provider_that_is_down_is_not_the_models_fault(
    plane: Plane, rounds: Rounds
) -> None:
    await plane.desired.put(DESIRED)
    for replica in plane.workers:
        replica.failures = [ProviderUnavailableError("down") for _ in range(8)]
    for _ in range(8):
        rounds.clock.now += 60
        await rounds.round()
    assert rounds.reconciler.failed() == {}
    rounds.clock.now += 60
    await rounds.round()
    assert set(plane.first.models) == {DESIRED.model_id}


async def test_a_model_unloaded_meanwhile_is_not_loaded(plane: Plane, rounds: Rounds) -> None:
    plane.first.go_on.clear()
    await plane.desired.put(DESIRED)
    await rounds.reconciler.round()
    await until(lambda: bool(plane.first.loads))
    await plane.lifecycle.unload(DESIRED.model_id)
    plane.first.go_on.set()
    await until(lambda: not rounds.reconciler._running)
    await rounds.round()
    assert await plane.lifecycle.loaded() == []
    assert plane.desired.all() == []


async def test_a_call_joins_the_load_that_the_loop_has_begun(plane: Plane, rounds: Rounds) -> None:
    plane.first.go_on.clear()
    await plane.desired.put(DESIRED)
    await rounds.reconciler.round()
    await until(lambda: bool(plane.first.loads))
    call = asyncio.create_task(plane.lifecycle.load(DESIRED))
    await asyncio.sleep(0.01)
    plane.first.go_on.set()
    assert (await call).replicas == 2
    assert rounds.tries == 1


async def test_the_loop_leaves_a_load_alone_that_a_caller_has_begun(
    plane: Plane, rounds: Rounds
) -> None:
    plane.first.go_on.clear()
    call = asyncio.create_task(plane.lifecycle.load(DESIRED))
    await until(lambda: bool(plane.first.loads))
    await rounds.round()
    assert await plane.lifecycle.restore(DESIRED) is None
    call.cancel()
    await asyncio.wait((call,))
    await rounds.round()
    assert await plane.lifecycle.restore(DESIRED) is None
    plane.first.go_on.set()
    await until(lambda: not plane.lifecycle.is_loading(DESIRED.model_id))
    await rounds.round()
    assert rounds.tries == 1
    assert plane.first.cancelled == 0


async def test_the_end_of_the_loop_ends_no_load_that_a_caller_waits_for(
    plane: Plane, rounds: Rounds
) -> None:
    plane.first.go_on.clear()
    await plane.desired.put(DESIRED)
    await rounds.reconciler.round()
    await until(lambda: bool(plane.first.loads))
    call = asyncio.create_task(plane.lifecycle.load(DESIRED))
    await asyncio.sleep(0.01)
    for task in rounds.reconciler._running.values():
        task.cancel()
    await asyncio.sleep(0.01)
    plane.first.go_on.set()
    assert (await call).replicas == 2


async def test_a_lost_record_is_rebuilt_when_replicas_first_answer(
    plane: Plane, rounds: Rounds
) -> None:
    await plane.lifecycle.load(DESIRED)
    async with DesiredModels(plane.files.cache_dir / "other.json") as desired:
        plane.second.answers_lists.clear()
        lifecycle = Lifecycle(plane.replicas, desired, plane.files.refresh)
        await lifecycle.adopt()
        assert desired.all() == [DESIRED]
        assert not desired.complete
        await desired.remove(DESIRED.model_id)  # unloaded, and the other holds it still
        plane.second.answers_lists.set()
        await lifecycle.adopt()
        assert desired.all() == []
        assert desired.complete


async def test_the_loop_goes_on_after_a_round_that_failed(
    plane: Plane, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = asyncio.Event()
    healthy = plane.desired.all

    def broken() -> list[DesiredModel]:
        failed.set()
        monkeypatch.setattr(plane.desired, "all", healthy)
        raise OSError("disk")

    await plane.desired.put(DESIRED)
    monkeypatch.setattr(plane.desired, "all", broken)
    loop = asyncio.create_task(rounds.reconciler.run())
    await failed.wait()
    await until(lambda: DESIRED.model_id in plane.first.models)
    loop.cancel()
    await asyncio.wait((loop,))


async def test_the_loop_ends_though_it_is_woken_in_the_same_moment(plane: Plane) -> None:
    reconciler = plane.reconciler(600, clock=Clock())
    loop = asyncio.create_task(reconciler.run())
    await until(lambda: plane.first.admitted and plane.second.admitted)
    await until(lambda: bool(reconciler._woken._waiters))  # between two rounds
    reconciler.wake()
    loop.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait((loop,))
    assert loop.cancelled()


async def test_with_nothing_wanted_all_are_admitted_at_once(plane: Plane, rounds: Rounds) -> None:
    await rounds.reconciler.round()
    assert [replica.admitted for replica in plane.workers] == [True, True]


async def test_a_replica_beside_another_is_admitted_with_its_models(
    plane: Plane, rounds: Rounds
) -> None:
    await plane.lifecycle.load(DESIRED)
    await rounds.round()
    plane.second.restart()
    plane.second.go_on.clear()
    for _ in range(3):
        await rounds.reconciler.round()
        await until(lambda: bool(plane.second.loads))
        assert not plane.second.admitted
    plane.second.go_on.set()
    await rounds.round()
    await rounds.round()
    assert set(plane.second.models) == {DESIRED.model_id}
    assert plane.second.admitted


async def test_one_is_admitted_before_its_models_if_no_other_answers(
    plane: Plane, rounds: Rounds
) -> None:
    await plane.desired.put(DESIRED)
    for replica in plane.workers:
        replica.go_on.clear()
    await rounds.reconciler.round()
    assert sorted(replica.admitted for replica in plane.workers) == [False, True]
    await (plane.first if plane.first.admitted else plane.second).stop()
    await rounds.reconciler.round()
    assert plane.first.admitted
    assert plane.second.admitted


async def test_a_replica_that_somebody_drained_is_left_alone(plane: Plane, rounds: Rounds) -> None:
    await rounds.reconciler.round()
    plane.first.admitted, plane.first.drained = False, True
    for _ in range(3):
        await rounds.reconciler.round()
    assert not plane.first.admitted
    plane.first.drained = False
    await rounds.reconciler.round()
    assert plane.first.admitted


async def test_a_drained_replica_is_no_reason_to_hold_a_new_one_back(
    plane: Plane, rounds: Rounds
) -> None:
    await plane.lifecycle.load(DESIRED)
    await rounds.round()
    plane.first.drained = True
    plane.second.restart()
    plane.second.go_on.clear()
    await rounds.reconciler.round()
    assert plane.second.admitted
    plane.second.go_on.set()


async def test_the_most_complete_replica_is_the_one_that_is_admitted(
    plane: Plane, rounds: Rounds
) -> None:
    await plane.lifecycle.load(DESIRED)
    plane.first.restart()
    plane.first.go_on.clear()
    await rounds.reconciler.round()
    assert [replica.admitted for replica in plane.workers] == [False, True]


@pytest.mark.parametrize("error", [OutOfMemoryError("9 GiB"), ProviderUnavailableError("down")])
async def test_a_model_that_cannot_be_loaded_keeps_no_replica_out(
    plane: Plane, rounds: Rounds, error: ServiceError
) -> None:
    await plane.lifecycle.load(DESIRED)
    await rounds.round()
    plane.second.restart()
    plane.second.failures = [error for _ in range(9)]
    for tried in range(1, 4):
        await rounds.round()
        assert (len(plane.second.loads), plane.second.admitted) == (tried, False)
        rounds.clock.now += 60
    await rounds.reconciler.round()
    assert plane.second.admitted


async def test_the_loop_is_woken(plane: Plane) -> None:
    reconciler = plane.reconciler(600, clock=Clock())
    loop = asyncio.create_task(reconciler.run())
    await until(lambda: plane.first.admitted and plane.second.admitted)
    plane.first.admitted = False
    reconciler.wake()
    await until(lambda: plane.first.admitted)
    loop.cancel()
    await asyncio.wait((loop,))


@pytest.fixture
async def one(plane: Plane, rounds: Rounds) -> Rounds:
    """A reconciler with one replica, which holds the model."""
    await plane.second.stop()
    await plane.lifecycle.load(DESIRED)
    await rounds.round()
    return rounds


async def seconds_to_return(rounds: Rounds, lived: float = 0.0) -> float | None:
    """Kills the model; None if it is not loaded again within five minutes."""
    rounds.clock.now += lived
    rounds.plane.first.die(DESIRED.model_id)
    tries = rounds.tries
    for seconds in range(300):
        await rounds.round()
        if rounds.tries > tries:
            await rounds.round()
            return seconds
        rounds.clock.now += 1.0
    return None


async def test_a_model_that_dies_when_ready_is_loaded_again_with_back_off(one: Rounds) -> None:
    assert await seconds_to_return(one) == 0
    for wait in (2, 4, 8, 16, 32, 60, 60):
        assert await seconds_to_return(one) == wait
    assert one.reconciler.failed() == {}  # it can be loaded, so it always comes back


async def test_a_model_that_lives_long_enough_has_recovered(one: Rounds) -> None:
    for _ in range(4):
        assert await seconds_to_return(one, lived=HEALTHY_SECONDS) == 0
    assert await seconds_to_return(one, lived=HEALTHY_SECONDS - 1) == 2
    assert one.reconciler.failed() == {}


async def test_a_death_counts_once(one: Rounds) -> None:
    one.plane.first.go_on.clear()
    one.plane.first.die(DESIRED.model_id)
    for _ in range(9):
        await one.reconciler.round()
    assert one.reconciler._failures[DESIRED.model_id].attempts == 1
    one.plane.first.go_on.set()
    await one.round()


async def test_a_replica_is_told_what_comes_back_and_when(one: Rounds) -> None:
    first = one.plane.first
    await seconds_to_return(one)
    assert list(first.told) == []
    first.die(DESIRED.model_id)
    one.clock.now += 1.0
    await one.reconciler.round()
    told = pb.Restore(model_id=DESIRED.model_id, wait_seconds=2.0, reason="its process ended")
    assert list(first.told) == [told]
    one.clock.now += 0.5
    await one.reconciler.round()
    assert first.told[0].wait_seconds == 1.5
    one.clock.now += 1.5
    await one.round()
    first.failures = [InvalidModelError("broken") for _ in range(9)]
    assert await seconds_to_return(one) is not None
    for _ in range(300):
        one.clock.now += 1.0
        await one.round()
    assert first.told[0].given_up
    assert first.told[0].reason == "broken"
    await one.plane.lifecycle.unload(DESIRED.model_id)
    await one.reconciler.round()
    assert list(first.told) == []


async def test_a_load_that_a_caller_asks_for_is_no_restore(plane: Plane, rounds: Rounds) -> None:
    plane.first.go_on.clear()
    call = asyncio.create_task(plane.lifecycle.load(DESIRED))
    await until(lambda: bool(plane.first.loads))
    await rounds.reconciler.round()
    assert not plane.first.told
    plane.first.go_on.set()
    await call


async def test_what_was_loaded_before_comes_back_whoever_asks(one: Rounds) -> None:
    """Callers of a restarted service are told to come again, also while LoadModel loads it."""
    first = one.plane.first
    first.models.clear()
    first.go_on.clear()
    call = asyncio.create_task(one.plane.lifecycle.load(DESIRED))
    await until(lambda: one.plane.lifecycle.is_requested(DESIRED.model_id))
    await one.reconciler.round()
    assert [told.model_id for told in first.told] == [DESIRED.model_id]
    first.go_on.set()
    await call
