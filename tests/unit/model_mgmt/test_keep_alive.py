"""A model that was idle for as long as its keep_alive says leaves memory, and stays desired."""

from __future__ import annotations

import pytest

from model_mgmt_svc.desired import DesiredModel
from model_mgmt_svc.keep_alive import KeepAlive
from model_mgmt_svc.life_options import split_life
from model_mgmt_svc.replicas import Replica, ReplicaModel
from model_mgmt_svc.status import ModelStates, StatusState
from shared.model_ids import ModelId
from tests.unit.model_mgmt.conftest import Plane

MODEL = ModelId("org/name")
DESIRED = DesiredModel(MODEL, "text-generation")


async def load(plane: Plane, **options: str) -> None:
    await plane.lifecycle.load(DESIRED, split_life(options)[0])


async def look(plane: Plane, *, default: float = -1.0) -> bool:
    """Looks once; returns whether the model is gone from all replicas."""
    await KeepAlive(plane.desired, plane.lifecycle, keep_alive=default, interval=60).look()
    held = [MODEL in worker.models for worker in plane.workers]
    assert held[0] == held[1]
    return not held[0]


def idle(plane: Plane, *seconds: float, used: bool = True) -> None:
    for worker, each in zip(plane.workers, seconds, strict=True):
        worker.models[MODEL].idle_seconds = each
        worker.models[MODEL].last_used_at = 1.0 if used else 0.0


async def test_it_leaves_when_it_was_idle_for_long_enough_everywhere(plane: Plane) -> None:
    await load(plane, keep_alive="300")
    idle(plane, 299, 1000)
    assert not await look(plane)
    idle(plane, 301, 1000)
    plane.second.models[MODEL].calls_in_flight = 1
    assert not await look(plane)
    plane.second.models[MODEL].calls_in_flight = 0
    assert await look(plane)
    model = plane.desired.get(MODEL)
    assert model
    assert model.evicted_why == "after 300 s without calls (option keep_alive)"
    reconciler = plane.reconciler()
    await reconciler.round()
    states = ModelStates(plane.desired, plane.lifecycle, reconciler)
    (status,) = (await states.all()).values()
    assert (status.state, status.keep_alive_seconds) == (StatusState.EVICTED, 300)
    assert len(plane.first.loads) == 1
    await load(plane)
    assert not await look(plane)
    (status,) = (await states.all()).values()
    assert (status.state, status.keep_alive_seconds) == (StatusState.READY, 300)


async def test_a_change_that_is_made_during_a_look_counts(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    await load(plane, keep_alive="300")
    idle(plane, 1000, 1000)
    models = plane.lifecycle.models

    async def models_beside_a_load() -> dict[Replica, list[ReplicaModel]]:
        found = await models()
        await load(plane, keep_alive="-1")
        return found

    monkeypatch.setattr(plane.lifecycle, "models", models_beside_a_load)
    assert not await look(plane)


async def test_with_0_it_leaves_after_its_last_call_and_not_before_the_first(plane: Plane) -> None:
    await load(plane, keep_alive="0")
    idle(plane, 50, 50, used=False)
    assert not await look(plane)
    idle(plane, 0.001, 50)
    assert await look(plane)
    assert plane.desired.get(MODEL).evicted_why == "after its last call (option keep_alive)"


@pytest.mark.parametrize("options", [{"keep_alive": "-1"}, {"pin": "true", "keep_alive": "5"}])
async def test_it_stays_where_it_shall(plane: Plane, options: dict[str, str]) -> None:
    await load(plane, **options)
    idle(plane, 1e9, 1e9)
    assert not await look(plane, default=1)


async def test_the_setting_is_the_default(plane: Plane) -> None:
    await load(plane)
    idle(plane, 1e9, 1e9)
    assert not await look(plane)
    assert await look(plane, default=60)


async def test_one_that_may_be_forgotten_is_no_longer_desired(plane: Plane) -> None:
    await load(plane, keep_alive="1", evict="forget")
    idle(plane, 2, 2)
    assert await look(plane)
    assert plane.desired.all() == []


async def test_an_evicted_model_has_its_options_again(plane: Plane) -> None:
    options = {"dtype": "float32"}
    desired = DesiredModel(MODEL, "text-generation", options)
    await plane.lifecycle.load(desired, split_life({"keep_alive": "1"})[0])
    assert plane.lifecycle.options_of_evicted(MODEL) == {}
    idle(plane, 2, 2)
    assert await look(plane)
    assert plane.lifecycle.options_of_evicted(MODEL) == options


async def test_a_call_that_comes_in_between_keeps_it(plane: Plane) -> None:
    def call(model):
        model.calls_in_flight = 1

    await load(plane, keep_alive="1")
    idle(plane, 2, 2)
    plane.second.before_unload[MODEL] = call
    await KeepAlive(plane.desired, plane.lifecycle, keep_alive=-1, interval=60).look()
    assert MODEL in plane.second.models
    model = plane.desired.get(MODEL)
    assert model
    assert not model.evicted  # and the reconciler loads it where it is missing
