"""Loads that do not fit: others are evicted over two replicas, safely beside calls and loads."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from model_mgmt_svc.desired import DesiredModel
from model_mgmt_svc.eviction import Resident
from model_mgmt_svc.evictor import EVICTIONS
from model_mgmt_svc.life_options import LifeOptions
from model_mgmt_svc.reconciler import Reconciler
from model_mgmt_svc.status import ModelStates, StatusState
from shared.errors import (
    CallCancelledError,
    InvalidModelError,
    ModelNotLoadedError,
    OutOfMemoryError,
)
from shared.model_ids import ModelId
from tests.support.waiting import until
from tests.unit.model_mgmt.conftest import Plane

# Two models of 40 fit into the budget, and a third does not.
BUDGET, SIZE = 100, 40


def model(name: str, **life: Any) -> DesiredModel:
    return DesiredModel(ModelId(name), "text-generation", life=LifeOptions(**life))


A, B, C = model("a"), model("b"), model("c")


@pytest.fixture(autouse=True)
def _little_memory(plane: Plane) -> Iterator[None]:
    for worker in plane.workers:
        worker.budgets["host"] = BUDGET
    yield
    for worker in plane.workers:
        assert worker.reserved() <= BUDGET


def held(plane: Plane) -> list[list[str]]:
    return [sorted(worker.models) for worker in plane.workers]


async def all_list_again(plane: Plane, change: asyncio.Event) -> None:
    """Sets the event and waits until a load has looked who is in its way."""
    before = [worker.lists for worker in plane.workers]
    change.set()
    await until(lambda: all(w.lists > n for w, n in zip(plane.workers, before, strict=True)))


async def load(plane: Plane, *models: DesiredModel) -> None:
    """Loads models one after the other; each has been idle for a minute longer than the next."""
    for each in models:
        await plane.lifecycle.load(each)
        for worker in plane.workers:
            for info in worker.models.values():
                info.idle_seconds += 60


def evicted(plane: Plane) -> dict[str, str]:
    return {each.model_id: each.evicted_why for each in plane.desired.all() if each.evicted}


async def test_the_least_recently_used_makes_room_on_all_replicas_and_stays_desired(
    plane: Plane,
) -> None:
    before = EVICTIONS.labels("a")._value.get()
    await load(plane, A, B, C)
    assert held(plane) == [["b", "c"]] * 2
    assert evicted(plane) == {"a": "to make room for c"}
    assert plane.desired.get(A.model_id) == replace(A, evicted_why="to make room for c")
    assert EVICTIONS.labels("a")._value.get() == before + 1
    for worker in plane.workers:  # their callers are told at once
        (told,) = worker.told
        assert (told.model_id, told.evicted) == ("a", True)
        assert told.reason == "was evicted to make room for c"


async def test_it_is_the_last_use_that_counts_on_any_replica(plane: Plane) -> None:
    await load(plane, A, B)
    plane.second.models["a"].idle_seconds = 59
    await load(plane, C)
    assert held(plane) == [["a", "c"]] * 2


@pytest.mark.parametrize(
    ("life", "stays"),
    [
        ({"pin": True}, "a holds 1 MiB and is pinned"),
        ({"evict": "none"}, "a holds 1 MiB and has the option evict=none"),
    ],
)
async def test_a_model_that_may_not_go_never_does(
    plane: Plane, life: dict[str, Any], stays: str
) -> None:
    await load(plane, model("a", **life), B, C)
    assert held(plane) == [["a", "c"]] * 2
    await load(plane, model("c", **life))
    plane.lifecycle._desired._models[C.model_id] = model("c", **life)
    with pytest.raises(OutOfMemoryError, match=stays):
        await plane.lifecycle.load(B)
    assert held(plane) == [["a", "c"]] * 2


async def test_a_model_with_a_call_on_any_replica_stays(plane: Plane) -> None:
    await load(plane, A, B)
    plane.second.models["a"].calls_in_flight = 1
    await load(plane, C)
    assert held(plane) == [["a", "c"]] * 2


async def test_where_none_may_go_the_refusal_says_why_and_nothing_changes(plane: Plane) -> None:
    await load(plane, model("a", pin=True), B)
    plane.first.models["b"].calls_in_flight = 2
    wishes = plane.desired.all()
    with pytest.raises(OutOfMemoryError) as caught:
        await plane.lifecycle.load(C)
    assert "a holds 1 MiB and is pinned" in caught.value.message
    assert "b holds 1 MiB and answers 2 calls" in caught.value.message
    assert caught.value.metadata["needed_bytes"] == str(SIZE)
    assert held(plane) == [["a", "b"]] * 2
    assert plane.desired.all() == wishes
    assert plane.first.unloads == ["c"]  # what the failed load may have left


async def test_what_would_not_fit_into_an_empty_memory_evicts_nothing(plane: Plane) -> None:
    await load(plane, A, B)
    for worker in plane.workers:
        worker.needs["c"] = {"host": BUDGET + 1}
    with pytest.raises(OutOfMemoryError, match="could go, but that is not enough"):
        await plane.lifecycle.load(C)
    assert held(plane) == [["a", "b"]] * 2
    assert not evicted(plane)


async def test_a_device_that_cannot_have_room_evicts_nothing_on_the_other(plane: Plane) -> None:
    for worker in plane.workers:
        worker.budgets["cuda:0"] = 10
        worker.needs["c"] = {"host": SIZE, "cuda:0": 20}
    await load(plane, A, B)
    with pytest.raises(OutOfMemoryError):
        await plane.lifecycle.load(C)
    assert held(plane) == [["a", "b"]] * 2


async def test_a_card_has_a_budget_of_its_own(plane: Plane) -> None:
    for worker in plane.workers:
        worker.budgets["cuda:0"] = 100
        worker.needs = {"a": {"host": 10}}
        worker.needs |= {name: {"host": 10, "cuda:0": 60} for name in "bc"}
    await load(plane, A, B, C)  # b is younger than a, but a holds nothing of the card
    assert held(plane) == [["a", "c"]] * 2


async def test_a_load_that_fails_after_evicting_brings_them_back(
    plane: Plane, reconciler: Reconciler
) -> None:
    await load(plane, A, B)
    plane.second.fails_loading["c"] = InvalidModelError("its weights are broken")
    with pytest.raises(InvalidModelError):
        await plane.lifecycle.load(C)
    assert not evicted(plane)
    assert "c" not in {each.model_id for each in plane.desired.all()}
    await reconciler.round()
    await until(lambda: held(plane) == [["a", "b"]] * 2)


async def test_one_that_is_forgotten_comes_back_too_if_it_went_for_nothing(plane: Plane) -> None:
    forgotten = model("a", evict="forget")
    await load(plane, forgotten, B)
    plane.first.fails_loading["c"] = InvalidModelError("broken")
    with pytest.raises(InvalidModelError):
        await plane.lifecycle.load(C)
    assert plane.desired.get(A.model_id) == forgotten


async def test_evict_forget_is_no_longer_desired(plane: Plane) -> None:
    await load(plane, model("a", evict="forget"), B, C)
    assert held(plane) == [["b", "c"]] * 2
    assert [each.model_id for each in plane.desired.all()] == ["b", "c"]


async def test_an_evicted_model_is_not_restored_and_is_loaded_when_asked_for(
    plane: Plane, reconciler: Reconciler
) -> None:
    await load(plane, A, B, C)
    await plane.lifecycle.unload(C.model_id)  # room comes back
    await reconciler.round()
    await reconciler.round()
    assert held(plane) == [["b"]] * 2
    for worker in plane.workers:
        assert [(told.model_id, told.evicted) for told in worker.told] == [("a", True)]
    await load(plane, A)
    assert held(plane) == [["a", "b"]] * 2
    assert not evicted(plane)
    await reconciler.round()
    assert not plane.first.told


async def test_an_unload_of_an_evicted_model_ends_the_wish(plane: Plane) -> None:
    await load(plane, A, B, C)
    assert await plane.lifecycle.unload(A.model_id) == 0
    assert [each.model_id for each in plane.desired.all()] == ["b", "c"]


async def test_the_state_of_an_evicted_model_is_told(plane: Plane, reconciler: Reconciler) -> None:
    await load(plane, A, B, C)
    status = (await ModelStates(plane.desired, plane.lifecycle, reconciler).all())[A.model_id]
    assert (status.state, status.desired) == (StatusState.EVICTED, True)
    assert status.reason == "it was evicted to make room for c"
    assert status.replicas_ready == 0


async def test_a_victim_that_gets_a_call_is_skipped_and_stays_on_all_replicas(
    plane: Plane, reconciler: Reconciler
) -> None:
    await load(plane, A, B)
    # One replica has freed it when the other gets a call.
    plane.second.before_unload["a"] = lambda info: setattr(info, "calls_in_flight", 1)
    loading = asyncio.create_task(plane.lifecycle.load(C))
    await loading
    assert held(plane) == [["c"], ["a", "c"]]  # b went in its place
    assert evicted(plane) == {"b": "to make room for c"}
    await reconciler.round()
    await until(lambda: held(plane) == [["a", "c"]] * 2)


async def test_a_model_that_is_being_loaded_elsewhere_is_no_victim(plane: Plane) -> None:
    await load(plane, A, B)
    plane.second.models.pop("a")
    plane.second.go_on.clear()
    again = asyncio.create_task(plane.lifecycle.load(A))
    await until(lambda: bool(plane.second.go_on._waiters))
    third = asyncio.create_task(plane.lifecycle.load(C))
    await until(lambda: evicted(plane) == {"b": "to make room for c"})
    plane.second.go_on.set()
    await asyncio.gather(again, third)
    assert held(plane) == [["a", "c"]] * 2


async def test_two_loads_that_both_evict_get_both_their_room(plane: Plane) -> None:
    await load(plane, A, B)
    await asyncio.gather(plane.lifecycle.load(C), plane.lifecycle.load(model("d")))
    assert held(plane) == [["c", "d"]] * 2
    assert set(evicted(plane)) == {"a", "b"}


async def test_of_two_loads_with_room_for_one_one_gets_it_on_all_replicas(plane: Plane) -> None:
    await load(plane, model("a", pin=True), B)
    outcomes = await asyncio.gather(
        plane.lifecycle.load(C), plane.lifecycle.load(model("d")), return_exceptions=True
    )
    failed = [
        name for name, each in zip("cd", outcomes, strict=True) if isinstance(each, Exception)
    ]
    (winner,) = set(held(plane)[0]) - {"a"}
    assert held(plane) == [["a", winner]] * 2
    (other,) = {"c", "d"} - {winner}
    if failed:
        assert failed == [other]
        assert plane.desired.get(ModelId(other)) is None
        assert evicted(plane) == {"b": f"to make room for {winner}"}
    else:  # it was complete before the other one needed room
        assert evicted(plane)[other] == f"to make room for {winner}"


async def test_a_load_gets_the_room_that_it_has_made_though_another_takes_it_on_one_replica(
    plane: Plane,
) -> None:
    await load(plane, model("a", pin=True), B)
    first, second = plane.workers
    first.holds["d"], second.holds["d"] = asyncio.Event(), asyncio.Event()
    late = asyncio.Event()
    for worker in plane.workers:  # c is late to take its room there
        worker.before_unload["b"] = lambda _: second.holds.update(c=late)
    third = asyncio.create_task(plane.lifecycle.load(C))
    fourth = asyncio.create_task(plane.lifecycle.load(model("d")))
    await until(lambda: "c" in first.models and "b" not in second.models)
    await until(lambda: bool(late._waiters))
    second.holds["d"].set()
    await until(lambda: "d" in second.models)
    await all_list_again(plane, late)
    first.holds["d"].set()
    with pytest.raises(OutOfMemoryError, match="c holds 1 MiB and is being loaded"):
        await fourth
    await third
    assert held(plane) == [["a", "c"]] * 2
    assert evicted(plane) == {"b": "to make room for c"}
    assert plane.desired.get(ModelId("d")) is None


async def test_of_two_loads_that_each_fill_one_replica_the_first_to_ask_gets_both(
    plane: Plane,
) -> None:
    await load(plane, model("a", pin=True))
    first, second = plane.workers
    second.holds["c"], first.holds["d"] = asyncio.Event(), asyncio.Event()
    third = asyncio.create_task(plane.lifecycle.load(C))
    fourth = asyncio.create_task(plane.lifecycle.load(model("d")))
    await until(lambda: "c" in first.models and "d" in second.models)
    await all_list_again(plane, second.holds["c"])
    first.holds["d"].set()
    with pytest.raises(OutOfMemoryError, match="c holds 1 MiB and is being loaded"):
        await fourth
    await third
    assert held(plane) == [["a", "c"]] * 2


async def test_a_load_that_waits_for_another_ends_when_it_fails_elsewhere(plane: Plane) -> None:
    await load(plane, model("a", pin=True))
    first, second = plane.workers
    first.reads_weights.clear()
    second.holds["c"], first.holds["d"] = asyncio.Event(), asyncio.Event()
    first.fails_loading["c"] = InvalidModelError("its weights are broken")
    third = asyncio.create_task(plane.lifecycle.load(C))
    fourth = asyncio.create_task(plane.lifecycle.load(model("d")))
    await until(lambda: "c" in first.models and "d" in second.models)
    await all_list_again(plane, second.holds["c"])
    first.reads_weights.set()
    with pytest.raises(InvalidModelError):
        await third
    first.holds["d"].set()
    await fourth
    assert held(plane) == [["a", "d"]] * 2


async def test_an_evicted_model_whose_load_fails_on_one_replica_is_freed_on_the_others(
    plane: Plane,
) -> None:
    await load(plane, A, B, C)
    plane.second.fails_loading["a"] = InvalidModelError("its weights are broken")
    with pytest.raises(InvalidModelError):
        await plane.lifecycle.load(A)
    assert held(plane) == [["c"]] * 2
    assert evicted(plane) == {"a": "to make room for c"}
    assert plane.first.told[-1].reason == "was evicted to make room for c"


async def test_a_load_of_the_victim_beside_its_eviction_ends_with_it_loaded(plane: Plane) -> None:
    await load(plane, A, B)
    for worker in plane.workers:
        worker.frees.clear()
    third = asyncio.create_task(plane.lifecycle.load(C))
    await until(lambda: "a" in plane.first.unloads)
    again = asyncio.create_task(plane.lifecycle.load(A))
    await asyncio.sleep(0.05)
    for worker in plane.workers:
        worker.frees.set()
    await asyncio.gather(third, again)
    assert held(plane) == [["a", "c"]] * 2
    assert evicted(plane) == {"b": "to make room for a"}


async def test_a_load_that_is_stopped_while_it_evicts_brings_the_victim_back(
    plane: Plane, reconciler: Reconciler
) -> None:
    await load(plane, A, B)
    for worker in plane.workers:
        worker.frees.clear()
    third = asyncio.create_task(plane.lifecycle.load(C))
    await until(lambda: "a" in plane.first.unloads and "a" in plane.second.unloads)
    stop = asyncio.create_task(plane.lifecycle.unload(C.model_id))
    await asyncio.sleep(0.05)
    for worker in plane.workers:
        worker.frees.set()
    await stop
    with pytest.raises(CallCancelledError):
        await third
    await until(lambda: not evicted(plane))
    await reconciler.round()
    await until(lambda: held(plane) == [["a", "b"]] * 2)


async def test_replicas_that_differ_evict_where_one_of_them_needs_it(plane: Plane) -> None:
    plane.first.budgets["host"] = 10 * BUDGET
    await load(plane, A, B, C)
    assert held(plane) == [["b", "c"]] * 2


async def test_a_replica_without_budgets_evicts_nothing(plane: Plane) -> None:
    await load(plane, A, B)
    for worker in plane.workers:
        worker.budgets = {}
        worker.failures = [OutOfMemoryError("no room", metadata={"needs": "host=40"})]
    with pytest.raises(OutOfMemoryError):
        await plane.lifecycle.load(C)
    assert held(plane) == [["a", "b"]] * 2


async def test_an_error_that_is_not_of_the_budget_evicts_nothing(plane: Plane) -> None:
    await load(plane, A)
    plane.first.failures = [OutOfMemoryError("its process went over its limit")]
    with pytest.raises(OutOfMemoryError, match="over its limit"):
        await plane.lifecycle.load(B)
    assert held(plane) == [["a"]] * 2


async def test_a_restore_takes_no_place_of_an_equal_and_then_counts_as_evicted(
    plane: Plane, reconciler: Reconciler
) -> None:
    await load(plane, A, B)
    for worker in plane.workers:  # it came back with less memory
        worker.models.pop("a")
        worker.budgets["host"] = SIZE
    await reconciler.round()
    await until(lambda: evicted(plane) == {"a": "since there was no room for it"})
    assert held(plane) == [["b"]] * 2
    tries = len(plane.first.loads)
    await reconciler.round()
    assert len(plane.first.loads) == tries
    assert not reconciler.failed()


async def test_one_that_is_forgotten_is_no_longer_desired_where_there_is_no_room_for_it(
    plane: Plane, reconciler: Reconciler
) -> None:
    await load(plane, model("a", evict="forget"), B)
    for worker in plane.workers:
        worker.models.pop("a")
        worker.budgets["host"] = SIZE
    await reconciler.round()
    await until(lambda: "a" not in reconciler._running)
    assert [each.model_id for each in plane.desired.all()] == ["b"]


async def test_a_restore_of_a_pinned_model_takes_the_place_of_others(
    plane: Plane, reconciler: Reconciler
) -> None:
    await load(plane, model("a", pin=True), B)
    for worker in plane.workers:
        worker.models.pop("a")
        worker.budgets["host"] = SIZE
    await reconciler.round()
    await until(lambda: held(plane) == [["a"]] * 2)
    assert evicted(plane) == {"b": "to make room for a"}


async def test_an_eviction_that_was_interrupted_is_finished(
    plane: Plane, reconciler: Reconciler
) -> None:
    await load(plane, A, B)
    await plane.desired.put(replace(A, evicted_why="to make room for c"))
    plane.second.models["a"].calls_in_flight = 1
    await reconciler.round()
    await until(lambda: not reconciler._running)
    assert held(plane) == [["a", "b"]] * 2  # it answers a call
    plane.second.models["a"].calls_in_flight = 0
    await plane.desired.put(replace(A, evicted_why="to make room for c"))
    await reconciler.round()
    assert held(plane) == [["b"]] * 2


async def test_one_that_was_to_be_forgotten_when_the_service_died_is_forgotten(
    plane: Plane, reconciler: Reconciler
) -> None:
    await plane.desired.put(replace(model("a", evict="forget"), evicted_why="to make room for b"))
    await plane.desired.put(replace(B, evicted_why="to make room for a"))
    await reconciler.round()
    assert evicted(plane) == {"b": "to make room for a"}


async def test_a_load_finds_an_evicted_model_that_a_replica_holds_still(plane: Plane) -> None:
    await load(plane, A)
    await plane.desired.put(replace(A, evicted_why="to make room for c"))
    await load(plane, A)
    assert not evicted(plane)


async def test_evict_takes_a_model_out_of_memory_unless_it_is_in_use(plane: Plane) -> None:
    await load(plane, A)
    plane.first.models["a"].calls_in_flight = 1
    assert not await plane.lifecycle.evict(A.model_id, "since it was idle")
    assert not evicted(plane)
    plane.first.models["a"].calls_in_flight = 0
    assert await plane.lifecycle.evict(A.model_id, "since it was idle")
    assert held(plane) == [[], []]
    assert evicted(plane) == {"a": "since it was idle"}


def staying(other: Resident, why: str) -> Resident:
    return replace(other, stays=other.stays or why)


async def test_a_load_may_keep_models_from_going(plane: Plane) -> None:
    await load(plane, A, B)

    def keeps_a(other: Resident) -> Resident:
        return staying(other, "is in turn") if other.model_id == "a" else other

    await plane.lifecycle.load(C, view=keeps_a)
    assert held(plane) == [["a", "c"]] * 2
    with pytest.raises(OutOfMemoryError, match="a holds 1 MiB and is in turn"):
        await plane.lifecycle.load(B, view=lambda other: staying(other, "is in turn"))
    await plane.lifecycle.load(B)
    assert held(plane)[0].count("b") == 1


async def test_a_model_that_nobody_desires_goes_first(plane: Plane) -> None:
    await load(plane, A, B)
    await plane.desired.remove(B.model_id)
    with pytest.raises(OutOfMemoryError, match="b holds 1 MiB and is not in the record"):
        await plane.lifecycle.load(C, view=lambda other: staying(other, "has to stay"))
    await plane.lifecycle.adopt()  # now nothing is missing in the record
    await load(plane, C)
    assert held(plane) == [["a", "c"]] * 2
    assert not evicted(plane)


async def test_an_unload_ends_a_load_that_has_its_memory_on_the_replica(plane: Plane) -> None:
    replica = next(each for each in plane.replicas.all() if each.address == plane.first.address)
    plane.first.reads_weights.clear()
    loading = asyncio.create_task(replica.load(A.model_id, A.pipeline_type, {}))
    await until(lambda: "a" in plane.first.models)
    await replica.unload(A.model_id)
    plane.first.reads_weights.set()
    with pytest.raises(CallCancelledError):
        await loading
    assert not plane.first.models


async def test_many_loads_at_once_never_take_more_than_the_budget(plane: Plane) -> None:
    async def caller(number: int) -> None:
        for round_ in range(6):
            name = "abcdef"[(number + round_) % 6]
            try:
                if (number + round_) % 4 == 3:
                    await plane.lifecycle.unload(ModelId(name))
                else:
                    await plane.lifecycle.load(model(name))
            except (OutOfMemoryError, CallCancelledError, ModelNotLoadedError):
                pass
            assert all(worker.reserved() <= BUDGET for worker in plane.workers)

    await asyncio.gather(*(caller(number) for number in range(12)))
    assert not plane.lifecycle._evictor._claims
    # What was evicted for a load that failed then is desired again, and the reconciler loads it.
    reconciler = plane.reconciler(
        0.01, max_failures=1000, clock=itertools.count(step=1000).__next__
    )

    async def settled() -> bool:
        """What is desired is in memory or evicted, and nothing else is in memory."""
        await reconciler.round()
        wishes = [each.model_id for each in plane.desired.all() if not each.evicted]
        return not reconciler._running and held(plane) == [sorted(wishes)] * 2

    await until(settled)
    assert all(worker.reserved() <= BUDGET for worker in plane.workers)


async def test_the_wish_is_on_the_disk_before_the_model_goes(plane: Plane) -> None:
    await load(plane, A, B)
    seen = []
    plane.first.before_unload["a"] = lambda _: seen.append(evicted(plane))
    await load(plane, C)
    assert seen == [{"a": "to make room for c"}]


@pytest.fixture
def reconciler(plane: Plane) -> Reconciler:
    return plane.reconciler(0.01)
