"""What is said of every model, and what watchers are told when it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from ml.internal import worker_pb2 as pb
from model_mgmt_svc import model_watch
from model_mgmt_svc.desired import DesiredModel
from model_mgmt_svc.model_watch import Changes, ModelWatch
from model_mgmt_svc.status import ModelStates, ModelStatus, StatusState
from shared.errors import OutOfMemoryError, PipelineMismatchError
from shared.model_ids import ModelId
from tests.support.waiting import until
from tests.unit.model_mgmt.conftest import Plane

MODEL = ModelId("org/name")
DESIRED = DesiredModel(MODEL, "text-generation", {"dtype": "float32"})


class Watched:
    """A plane with its reconciler, and what watches its models."""

    def __init__(self, plane: Plane) -> None:
        self.now = 0.0
        self.reconciler = plane.reconciler(0.01, max_failures=2, clock=lambda: self.now)
        states = ModelStates(plane.desired, plane.lifecycle, self.reconciler)
        self.watch = ModelWatch(states, look_seconds=0.01)

    async def status(self) -> ModelStatus | None:
        found = [each for each in (await self.watch.now()).models if each.model_id == MODEL]
        return found[0] if found else None

    async def state(self) -> StatusState | None:
        status = await self.status()
        return status.state if status else None

    async def round(self) -> None:
        await self.reconciler.round()
        await until(lambda: not self.reconciler._running)


@pytest.fixture
def watched(plane: Plane) -> Watched:
    return Watched(plane)


async def next_of(changes: AsyncIterator[Changes]) -> Changes:
    async with asyncio.timeout(30):
        return await anext(changes)


def report(state: pb.ModelState, **figures: int) -> pb.ModelInfo:
    return pb.ModelInfo(model_id=MODEL, pipeline_type="text-generation", state=state, **figures)


async def test_a_loaded_model_is_told_with_all_of_its_figures(
    plane: Plane, watched: Watched
) -> None:
    await plane.lifecycle.load(DESIRED)
    for worker, calls, last in (plane.first, 2, 1_800_000_000.5), (plane.second, 1, 0.0):
        worker.models[MODEL].calls_in_flight = calls
        worker.models[MODEL].last_used_at = last
    status = await watched.status()
    assert status is not None
    assert (status.state, status.desired, status.reason) == (StatusState.READY, True, "")
    assert (status.replicas_ready, status.replicas, status.calls_in_flight) == (2, 2, 3)
    assert status.last_used_at == 1_800_000_000.5
    assert status.ram_bytes == 2 * plane.first.models[MODEL].ram_bytes
    assert status.options == {"dtype": "float32"}


async def test_a_load_is_told_from_its_beginning(plane: Plane, watched: Watched) -> None:
    assert await watched.status() is None
    for worker in plane.workers:
        worker.go_on.clear()
    await plane.lifecycle.begin(DESIRED)
    assert await watched.state() is StatusState.FETCHING
    await until(lambda: bool(plane.first.loads))
    plane.first.models[MODEL] = report(pb.MODEL_STATE_FETCHING, bytes_fetched=1, bytes_total=9)
    plane.second.models[MODEL] = report(pb.MODEL_STATE_FETCHING, bytes_fetched=7, bytes_total=9)
    status = await watched.status()
    assert status is not None
    assert (status.bytes_fetched, status.bytes_total, status.desired) == (7, 9, True)
    plane.first.models[MODEL] = report(pb.MODEL_STATE_CONVERTING)
    assert await watched.state() is StatusState.CONVERTING
    plane.first.models[MODEL] = report(pb.MODEL_STATE_LOADING)
    assert await watched.state() is StatusState.LOADING
    plane.first.go_on.set()
    await until(lambda: plane.first.models[MODEL].state == pb.MODEL_STATE_READY)
    assert await watched.state() is StatusState.READY  # it answers calls, on one replica
    assert (await watched.status()).replicas_ready == 1  # type: ignore[union-attr]
    plane.second.go_on.set()
    await until(lambda: not plane.lifecycle.is_loading(MODEL))
    assert (await watched.status()).replicas_ready == 2  # type: ignore[union-attr]


async def test_a_load_that_fails_is_told_for_a_while(
    plane: Plane, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.first.failures = [OutOfMemoryError("it needs 9 GiB")]
    plane.second.failures = [OutOfMemoryError("it needs 9 GiB")]
    await plane.lifecycle.begin(DESIRED)
    await until(lambda: not plane.lifecycle.is_loading(MODEL))
    status = await watched.status()
    assert status is not None
    assert (status.state, status.reason) == (StatusState.FAILED, "it needs 9 GiB")
    assert not status.desired
    assert status.next_try_seconds is None
    with pytest.raises(OutOfMemoryError):  # told once to who asks again
        await plane.lifecycle.begin(DESIRED)
    assert await watched.state() is StatusState.FAILED
    monkeypatch.setattr("model_mgmt_svc.lifecycle.FAILED_SECONDS", 0)
    assert await watched.status() is None


async def test_a_model_that_died_says_when_it_is_tried_again(
    plane: Plane, watched: Watched
) -> None:
    await plane.lifecycle.load(DESIRED)
    for _ in range(2):
        for worker in plane.workers:
            worker.models.clear()
            worker.failures = [OutOfMemoryError("it needs 9 GiB")]
        assert await watched.state() in (StatusState.PENDING, StatusState.FAILED)
        await watched.round()
        status = await watched.status()
        assert status is not None
        assert (status.state, status.desired) == (StatusState.FAILED, True)
        assert status.reason == "it needs 9 GiB"
        waited, watched.now = watched.now, watched.now + 10
    assert status.next_try_seconds is None  # given up
    assert waited == 10


async def test_a_model_is_not_begun_with_another_type(plane: Plane) -> None:
    await plane.lifecycle.load(DESIRED)
    with pytest.raises(PipelineMismatchError):
        await plane.lifecycle.begin(DesiredModel(MODEL, "feature-extraction", {}))


async def test_a_watcher_is_told_everything_and_then_what_changes(
    plane: Plane, watched: Watched
) -> None:
    async with aclosing(watched.watch.changes()) as changes:
        first = await next_of(changes)
        assert first.complete
        assert not first.models
        await plane.lifecycle.load(DESIRED)
        seen = []
        while StatusState.READY not in seen:
            change = await next_of(changes)
            assert not change.complete
            seen += [each.state for each in change.models]
        await plane.lifecycle.unload(MODEL)
        while not change.removed:
            change = await next_of(changes)
        assert change.removed == [MODEL]
        assert change.sequence > first.sequence
    assert watched.watch._looker is None  # nobody watches, nothing is looked at
    lists = plane.first.lists
    await asyncio.sleep(0.05)
    assert plane.first.lists == lists


async def test_a_watcher_goes_on_where_it_stopped(plane: Plane, watched: Watched) -> None:
    await plane.lifecycle.load(DESIRED)
    other = DesiredModel(ModelId("org/other"), "text-generation", {})
    await plane.lifecycle.load(other)
    now = await watched.watch.now()
    assert now.complete
    await plane.lifecycle.unload(MODEL)
    plane.first.models["org/other"].calls_in_flight = 1
    async with aclosing(watched.watch.changes(now.sequence)) as changes:
        change = await next_of(changes)
    assert not change.complete
    assert change.removed == [MODEL]
    assert [each.model_id for each in change.models] == ["org/other"]
    # What is not of this process, and what it has forgotten, is answered with everything.
    for after in (now.sequence - 10**6, now.sequence + 10**9):
        async with aclosing(watched.watch.changes(after)) as changes:
            change = await next_of(changes)
        assert change.complete
        assert [each.model_id for each in change.models] == ["org/other"]


async def test_what_is_gone_is_remembered_up_to_a_limit(
    plane: Plane, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_watch, "MAX_GONE", 1)
    before = await watched.watch.now()
    for name in "org/a", "org/b":
        await plane.lifecycle.load(DesiredModel(ModelId(name), "text-generation", {}))
        await watched.watch.now()
    for name in "org/a", "org/b":
        await plane.lifecycle.unload(ModelId(name))
        await watched.watch.now()
    async with aclosing(watched.watch.changes(before.sequence)) as changes:
        assert (await next_of(changes)).complete


async def test_a_look_that_fails_or_is_cancelled_stops_nobody_else(
    plane: Plane, watched: Watched
) -> None:
    plane.first.answers_lists.clear()
    first = asyncio.create_task(watched.watch.now())
    await until(lambda: plane.first.lists > 0)
    second = asyncio.create_task(watched.watch.now())
    await asyncio.sleep(0)
    first.cancel()
    plane.first.answers_lists.set()
    assert (await second).complete


async def test_replicas_that_were_drained_are_told(plane: Plane, watched: Watched) -> None:
    await plane.lifecycle.load(DESIRED)
    plane.first.drained = True
    status = await watched.status()
    assert status is not None
    assert (status.replicas, status.replicas_ready, status.replicas_drained) == (2, 2, 1)


async def test_the_share_of_a_load_is_that_of_the_farthest_replica(
    plane: Plane, watched: Watched
) -> None:
    plane.first.models[MODEL] = report(pb.MODEL_STATE_LOADING)
    plane.second.models[MODEL] = report(pb.MODEL_STATE_LOADING)
    assert (status := await watched.status()) is not None
    assert status.load_share is None
    plane.first.models[MODEL].load_share = 0.25
    assert (status := await watched.status()) is not None
    assert status.load_share == 0.25
    plane.second.models[MODEL].load_share = 0.5
    assert (status := await watched.status()) is not None
    assert status.load_share == 0.5
    plane.first.models[MODEL].state = pb.MODEL_STATE_READY
    assert (status := await watched.status()) is not None
    assert status.load_share is None
