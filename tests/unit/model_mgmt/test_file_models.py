"""The desired models follow the file, beside what callers ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from model_mgmt_svc.desired import DesiredModel
from model_mgmt_svc.file_models import FileModels
from model_mgmt_svc.life_options import LifeOptions, split_life
from model_mgmt_svc.replicas import LoadedModel
from model_mgmt_svc.status import ModelStates, StatusState
from shared.errors import InvalidModelError
from shared.model_ids import ModelId
from tests.support.waiting import until
from tests.unit.model_mgmt.conftest import Plane

MODEL, OTHER = ModelId("org/name"), ModelId("org/other")
ONE = '[[models]]\nid = "org/name"\ntype = "text-generation"\n'
TWO = '[[models]]\nid = "org/other"\ntype = "text-generation"\n'
DESIRED = DesiredModel(MODEL, "text-generation")


class Followed:
    """A file, and what follows it."""

    def __init__(self, plane: Plane, path: Path) -> None:
        self.plane, self.path = plane, path
        self.reconciler = plane.reconciler()
        self.start()

    def start(self) -> None:
        """As after a restart of the service."""
        self.models = FileModels(
            self.path,
            self.plane.files,
            self.plane.desired,
            self.plane.lifecycle,
            self.reconciler,
            interval=60,
        )

    async def write(self, text: str) -> None:
        self.path.write_text(text)
        await self.models.look()

    async def loaded(self, *model_ids: str) -> None:
        """Waits until the replicas hold these models and no others."""
        await self.reconciler.round()
        for worker in self.plane.workers:
            await until(lambda worker=worker: set(worker.models) == set(model_ids))

    def desired(self) -> dict[str, tuple[str, ...]]:
        return {each.model_id: each.sources for each in self.plane.desired.all()}


@pytest.fixture
def followed(plane: Plane, tmp_path: Path) -> Followed:
    return Followed(plane, tmp_path / "models.toml")


async def test_models_come_and_go_with_the_file(followed: Followed) -> None:
    await followed.write(ONE + 'dtype = "float32"\npin = true\n' + TWO)
    await followed.loaded(MODEL, OTHER)
    assert followed.desired() == {MODEL: ("file",), OTHER: ("file",)}
    assert [dict(load.options) for load in followed.plane.first.loads if load.options] == [
        {"dtype": "float32"}
    ]
    assert followed.plane.lifecycle.life_of(MODEL) == LifeOptions(pin=True)
    await followed.write(TWO)
    await followed.loaded(OTHER)
    assert followed.desired() == {OTHER: ("file",)}


async def test_what_a_caller_asked_for_too_stays(followed: Followed) -> None:
    await followed.write(ONE)
    await followed.plane.lifecycle.load(DESIRED)
    await followed.plane.lifecycle.load(DesiredModel(OTHER, "text-generation"))
    await followed.write(ONE + TWO)
    assert followed.desired() == {MODEL: ("api", "file"), OTHER: ("api", "file")}
    await followed.write("")
    assert followed.desired() == {MODEL: ("api",), OTHER: ("api",)}
    await followed.loaded(MODEL, OTHER)


async def test_a_restart_sees_what_was_removed_meanwhile(followed: Followed) -> None:
    await followed.write(ONE + TWO)
    await followed.loaded(MODEL, OTHER)
    followed.start()
    await followed.write(TWO)
    assert followed.desired() == {OTHER: ("file",)}
    assert len(followed.plane.first.loads) == 2
    followed.path.unlink()
    followed.start()
    await followed.models.look()
    assert followed.desired() == {OTHER: ("file",)}
    assert followed.models.refused == "it cannot be read: No such file or directory"


async def test_a_bad_file_is_refused_and_the_last_good_one_counts(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    await followed.write(ONE)
    for text, why in [
        (TWO + "pin = 5", "line 4: option pin must be one of true, false, not '5'"),
        (TWO + "magic = 5", "line 1: unknown option 'magic'"),  # a replica says so
    ]:
        await followed.write(text)
        await followed.models.look()
        assert followed.desired() == {MODEL: ("file",)}
        assert followed.models.refused.startswith(why)
    assert caplog.text.count("is refused") == 2
    followed.path.rename(followed.path.with_suffix(".moved"))
    await followed.models.look()
    assert "cannot be read" in followed.models.refused
    await followed.write(ONE)
    assert not followed.models.refused
    assert followed.desired() == {MODEL: ("file",)}
    await followed.write(TWO)
    assert followed.desired() == {OTHER: ("file",)}
    assert not followed.models.refused


async def test_options_of_life_change_without_a_reload_and_others_with_one(
    followed: Followed,
) -> None:
    await followed.write(ONE)
    await followed.loaded(MODEL)
    await followed.write(ONE + 'aliases = ["chat"]\n')
    assert followed.plane.lifecycle.model_of(ModelId("chat")) == MODEL
    await followed.loaded(MODEL)
    assert len(followed.plane.first.loads) == 1
    await followed.write(ONE + 'dtype = "float32"\n')
    await followed.loaded(MODEL)
    assert [dict(load.options) for load in followed.plane.first.loads] == [{}, {"dtype": "float32"}]
    assert followed.plane.lifecycle.life_of(MODEL) == LifeOptions()


async def test_a_caller_keeps_its_options_of_a_load(followed: Followed) -> None:
    await followed.plane.lifecycle.load(DESIRED, split_life({"priority": "2"})[0])
    await followed.write(ONE + 'dtype = "float32"\npin = true\n')
    await followed.loaded(MODEL)
    assert [dict(load.options) for load in followed.plane.first.loads] == [{}]
    assert followed.plane.lifecycle.life_of(MODEL) == LifeOptions(pin=True, priority=2)


async def test_a_load_of_a_caller_that_fails_meanwhile_does_not_take_it_away(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = followed.plane
    check = plane.lifecycle.check
    plane.first.go_on.clear()
    plane.first.failures = [InvalidModelError("bad")]
    loads: list[asyncio.Task[LoadedModel]] = []

    async def check_beside_a_load(model: DesiredModel) -> Mapping[str, str]:
        if model.file_entry is not None:
            loads.append(asyncio.create_task(plane.lifecycle.load(DESIRED)))
            await until(lambda: bool(plane.first.loads))
        return await check(model)

    monkeypatch.setattr(plane.lifecycle, "check", check_beside_a_load)
    await followed.write(ONE)
    plane.first.go_on.set()
    with pytest.raises(InvalidModelError):
        await loads[0]
    monkeypatch.undo()
    await followed.models.look()
    assert followed.desired() == {MODEL: ("file",)}


async def test_an_unload_by_a_caller_counts_until_the_entry_changes(followed: Followed) -> None:
    await followed.write(ONE)
    await followed.loaded(MODEL)
    await followed.plane.lifecycle.unload(MODEL)
    await followed.write(ONE + TWO)
    assert followed.desired() == {OTHER: ("file",)}
    await followed.write(ONE + "pin = true\n" + TWO)
    assert followed.desired() == {MODEL: ("file",), OTHER: ("file",)}


async def test_a_model_whose_type_is_not_found_waits_and_is_shown(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_mgmt_svc.file_models.RETRY_SECONDS", 0.0)
    plane = followed.plane
    await followed.write('[[models]]\nid = "org/name"\n')
    states = ModelStates(
        plane.desired, plane.lifecycle, followed.reconciler, waiting=followed.models.waiting
    )
    (status,) = (await states.all()).values()
    assert (status.model_id, status.state) == (MODEL, StatusState.FAILED)
    assert status.reason == "the file provider has no model 'org/name'"
    assert status.sources == ("file",)
    plane.source.files[f"{MODEL}/config.json"] = b'{"architectures": ["LlamaForCausalLM"]}'
    await followed.models.look()
    assert followed.desired() == {MODEL: ("file",)}
    assert [each.desired for each in (await states.all()).values()] == [True]


async def test_a_name_of_another_model_is_not_taken_from_it(followed: Followed) -> None:
    await followed.plane.lifecycle.load(DESIRED, split_life({"aliases": "chat"})[0])
    await followed.write(TWO + 'aliases = ["chat"]\n')
    assert followed.desired() == {MODEL: ("api",)}
    assert "an alias of 'org/name'" in followed.models.waiting()[OTHER].reason
