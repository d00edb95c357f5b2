"""Options of life over two replicas: changed without a reload, told, kept and rebuilt."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.life_options import LifeChange, LifeOptions, split_life
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.reconciler import Reconciler
from shared.errors import FailedPreconditionError, InvalidModelError
from shared.model_ids import ModelId
from tests.support.waiting import until
from tests.unit.model_mgmt.conftest import Plane

MODEL, OTHER, CHAT = ModelId("org/name"), ModelId("org/other"), ModelId("chat")
DESIRED = DesiredModel(MODEL, "text-generation", {"dtype": "float32"})
SECOND = DesiredModel(OTHER, "text-generation")


def change(**options: str) -> LifeChange:
    return split_life(options)[0]


def reconciler_of(plane: Plane) -> Reconciler:
    return plane.reconciler()


async def test_they_change_without_a_reload_and_stay_over_other_loads(plane: Plane) -> None:
    await plane.lifecycle.load(DESIRED, change(pin="true", aliases="chat"))
    await plane.lifecycle.load(DESIRED, change(priority="3"))
    await plane.lifecycle.load(DESIRED)
    assert [len(worker.loads) for worker in plane.workers] == [1, 1]
    assert [dict(load.options) for load in plane.first.loads] == [{"dtype": "float32"}]
    assert plane.lifecycle.life_of(MODEL) == LifeOptions(pin=True, priority=3, aliases=(CHAT,))
    await plane.lifecycle.unload(MODEL)
    await plane.lifecycle.load(DESIRED)
    assert plane.lifecycle.life_of(MODEL) == LifeOptions()


async def test_a_change_of_a_caller_who_joins_a_load_is_made(plane: Plane) -> None:
    plane.first.go_on.clear()
    load = asyncio.create_task(plane.lifecycle.load(DESIRED, change(pin="true")))
    await until(lambda: bool(plane.first.loads))
    assert plane.lifecycle.life_of(MODEL) == LifeOptions(pin=True)
    await plane.lifecycle.begin(DESIRED, change(priority="3"))
    plane.first.go_on.set()
    await load
    assert plane.lifecycle.life_of(MODEL) == LifeOptions(pin=True, priority=3)


async def test_what_was_loaded_for_calls_stays_desired_once_a_caller_asks_for_it(
    plane: Plane,
) -> None:
    for_calls = replace(DESIRED, life=LifeOptions(evict="forget"), asked=False)
    await plane.lifecycle.load(for_calls)
    await plane.lifecycle.load(for_calls)
    assert plane.lifecycle.life_of(MODEL) == LifeOptions(evict="forget")
    await plane.lifecycle.load(DESIRED)
    assert plane.lifecycle.life_of(MODEL) == LifeOptions()
    assert await plane.lifecycle.evict(MODEL, "to make room for org/other")
    assert [each.evicted for each in plane.desired.all()] == [True]
    await plane.lifecycle.load(DESIRED, change(evict="forget"))
    await plane.lifecycle.load(DESIRED)
    assert plane.lifecycle.life_of(MODEL) == LifeOptions(evict="forget")


async def test_a_load_that_fails_changes_nothing(plane: Plane) -> None:
    await plane.lifecycle.load(DESIRED, change(priority="1"))
    plane.first.restart()
    plane.first.failures = [InvalidModelError("bad")]
    with pytest.raises(InvalidModelError):
        await plane.lifecycle.load(DESIRED, change(pin="true"))
    assert plane.lifecycle.life_of(MODEL) == LifeOptions(priority=1)


async def test_one_name_means_one_model(plane: Plane) -> None:
    await plane.lifecycle.load(DESIRED, change(aliases="chat"))
    assert plane.lifecycle.model_of(CHAT) == plane.lifecycle.model_of(MODEL) == MODEL
    assert plane.lifecycle.model_of(OTHER) == OTHER
    for aliases in ("chat", "fine,org/name"):
        with pytest.raises(FailedPreconditionError, match="org/other' cannot have the name"):
            await plane.lifecycle.load(SECOND, change(aliases=aliases))
    with pytest.raises(FailedPreconditionError, match="'chat', which is an alias of 'org/name'"):
        await plane.lifecycle.load(replace(SECOND, model_id=CHAT))
    await plane.lifecycle.load(SECOND)
    with pytest.raises(FailedPreconditionError, match="which is the id of another model"):
        await plane.lifecycle.load(DESIRED, change(aliases="org/other"))
    assert plane.lifecycle.life_of(MODEL) == LifeOptions(aliases=(CHAT,))
    await plane.lifecycle.load(DESIRED, change(aliases=""))
    await plane.lifecycle.load(SECOND, change(aliases="chat"))
    assert plane.lifecycle.model_of(CHAT) == OTHER


async def test_two_loads_at_once_do_not_get_the_same_alias(plane: Plane) -> None:
    outcomes = await asyncio.gather(
        plane.lifecycle.load(DESIRED, change(aliases="chat")),
        plane.lifecycle.load(SECOND, change(aliases="chat")),
        return_exceptions=True,
    )
    (refused,) = (each for each in outcomes if isinstance(each, Exception))
    assert isinstance(refused, FailedPreconditionError)
    assert len(plane.desired.all()) == 1


async def test_a_load_that_fails_takes_no_name_back_that_another_has_got(plane: Plane) -> None:
    await plane.lifecycle.load(DESIRED, change(aliases="chat, talk"))
    for worker in plane.workers:
        worker.restart()
    plane.first.go_on.clear()
    plane.first.failures = [InvalidModelError("bad")]
    load = asyncio.create_task(plane.lifecycle.load(DESIRED, change(aliases="")))
    await until(lambda: plane.lifecycle.life_of(MODEL) == LifeOptions())
    await plane.desired.put(replace(SECOND, life=LifeOptions(aliases=(CHAT,))))
    plane.first.go_on.set()
    with pytest.raises(InvalidModelError):
        await load
    assert plane.lifecycle.life_of(MODEL) == LifeOptions(aliases=(ModelId("talk"),))
    assert plane.lifecycle.life_of(OTHER) == LifeOptions(aliases=(CHAT,))


async def test_every_replica_knows_the_names_also_after_its_restart(plane: Plane) -> None:
    reconciler = reconciler_of(plane)
    await plane.lifecycle.load(DESIRED, change(aliases="chat,org/alias"))
    await reconciler.tell_names()
    for worker in plane.workers:
        assert [(each.model_id, list(each.aliases)) for each in worker.lives] == [
            (MODEL, ["chat", "org/alias"])
        ]
    plane.second.restart()
    await reconciler.round()
    assert plane.second.lives == plane.first.lives
    await plane.lifecycle.load(DESIRED, change(aliases=""))
    await reconciler.round()
    assert not plane.first.lives
    assert not plane.second.lives


async def test_a_lost_record_is_rebuilt_with_them(plane: Plane, tmp_path: Path) -> None:
    await plane.lifecycle.load(DESIRED, change(aliases="chat", keep_alive="300", evict="none"))
    await reconciler_of(plane).tell_names()
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "desired.json").write_bytes(b"garbage")
    async with DesiredModels(tmp_path / "lost" / "desired.json") as desired:
        lifecycle = Lifecycle(plane.replicas, desired, plane.files.refresh)
        await lifecycle.adopt()
        assert desired.all() == plane.desired.all()
        assert lifecycle.life_of(MODEL) == LifeOptions(
            keep_alive=300, evict="none", aliases=(CHAT,)
        )


async def test_names_that_a_record_gives_twice_are_the_first_models(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    entry = {"pipeline_type": "tokenizer", "options": {}, "life": {"pin": True, "aliases": ["a"]}}
    other = {"pin": True, "aliases": ["three", "b"]}
    models = [
        entry | {"model_id": "one"},
        entry | {"model_id": "three"},
        entry | {"model_id": "two", "life": other},
    ]
    path.write_text(json.dumps({"models": models}))
    async with DesiredModels(path) as desired:
        assert [(each.model_id, each.life.aliases) for each in desired.all()] == [
            ("one", ("a",)),
            ("three", ()),
            ("two", ("b",)),
        ]
        assert all(each.life.pin for each in desired.all())
