"""Calls that wait until their model is loaded for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from shared import caller
from shared.errors import (
    InvalidModelError,
    ModelNotLoadedError,
    PipelineMismatchError,
    QueueFullError,
    WorkerUnavailableError,
)
from shared.files.client import ModelFiles
from shared.model_host import ModelState, Restores
from shared.model_ids import ModelId
from shared.pipelines import FEATURE_EXTRACTION
from tests.support.waiting import until
from text_svc.models.demand import Demand
from text_svc.models.model import ManagedModel
from text_svc.models.registry import MAX_BRINGS, Registry
from text_svc.options import LoadOptions
from text_svc.processes.model_process import ModelProcess
from text_svc.settings import TextSettings

A, B = ModelId("org/a"), ModelId("org/b")
EMBED = "GenerateEmbeddings"


class ControlPlane:
    """Answers what the calls want once it is told to, or with an error."""

    def __init__(self) -> None:
        self.wants: list[tuple[ModelId, str]] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None
        self.cancelled = 0

    async def want(self, model_id: ModelId, call: str) -> None:
        self.wants.append((model_id, call))
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error


async def waiting(demand: Demand, *calls: tuple[ModelId, str]) -> list[asyncio.Task[None]]:
    """Calls that wait now."""
    before = sum(demand.waiting_calls().values())
    tasks = [asyncio.create_task(demand.bring(*call)) for call in calls]
    await until(lambda: sum(demand.waiting_calls().values()) == before + len(calls))
    return tasks


async def test_calls_for_one_model_share_one_want() -> None:
    plane = ControlPlane()
    demand = Demand(plane.want, 100)
    tasks = await waiting(demand, *[(A, EMBED)] * 10, *[(B, EMBED)] * 5, (A, "Infer"))
    assert sorted(plane.wants) == [(A, EMBED), (A, "Infer"), (B, EMBED)]
    assert demand.waiting_calls() == {A: 11, B: 5}
    plane.go_on.set()
    await asyncio.gather(*tasks)
    assert demand.waiting_calls() == {}


async def test_the_want_ends_with_its_last_call_only() -> None:
    plane = ControlPlane()
    demand = Demand(plane.want, 100)
    first, second = await waiting(demand, (A, EMBED), (A, EMBED))
    first.cancel()
    await asyncio.wait({first})
    assert (plane.cancelled, demand.waiting_calls()) == (0, {A: 1})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):  # its deadline
            await second
    await until(lambda: plane.cancelled == 1)
    assert demand.waiting_calls() == {}
    (third,) = await waiting(demand, (A, EMBED))
    plane.go_on.set()
    await third
    assert len(plane.wants) == 2


async def test_why_a_model_cannot_be_had_reaches_all_its_calls() -> None:
    plane = ControlPlane()
    plane.error = InvalidModelError("broken")
    demand = Demand(plane.want, 100)
    tasks = await waiting(demand, *[(A, EMBED)] * 3)
    plane.go_on.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes == [plane.error] * 3
    assert demand.waiting_calls() == {}


async def test_more_calls_than_the_limit_are_refused() -> None:
    plane = ControlPlane()
    demand = Demand(plane.want, 2)
    tasks = await waiting(demand, (A, EMBED), (B, EMBED))
    with pytest.raises(QueueFullError, match=r"2 calls wait .*TEXT_MAX_WAITING_FOR_MODELS"):
        await demand.bring(A, EMBED)
    plane.go_on.set()
    await asyncio.gather(*tasks)
    with pytest.raises(QueueFullError):
        await Demand(plane.want, 0).bring(A, EMBED)


async def test_a_caller_with_all_places_leaves_one_to_another() -> None:
    plane = ControlPlane()
    demand = Demand(plane.want, 4)
    caller.set_caller({caller.CALLER_KEY: "greedy"})
    tasks = await waiting(demand, *[(A, EMBED)] * 4)
    caller.set_caller({caller.CALLER_KEY: "modest"})
    modest = asyncio.create_task(demand.bring(A, EMBED))
    (ousted,), _ = await asyncio.wait({*tasks, modest}, return_when=asyncio.FIRST_COMPLETED)
    assert ousted in tasks
    with pytest.raises(QueueFullError, match="another caller has asked"):
        await ousted
    plane.go_on.set()
    await asyncio.gather(modest, *(task for task in tasks if task is not ousted))


async def test_calls_that_wait_at_the_end_of_the_service_are_cancelled() -> None:
    plane = ControlPlane()
    demand = Demand(plane.want, 4)
    (task,) = await waiting(demand, (A, EMBED))
    await demand.aclose()
    with pytest.raises(Exception, match="stopped"):
        await task


class Process:
    """In the place of a model's process."""

    async def stop(self) -> None: ...


class Front:
    """A registry whose models are loaded by `put`."""

    def __init__(self, registry: Registry, plane: ControlPlane, restores: Restores) -> None:
        self.registry, self.plane, self.restores = registry, plane, restores
        restores.replace((), auto_load=True)

    def put(self, model_id: ModelId = A) -> ManagedModel:
        model = ManagedModel(model_id, FEATURE_EXTRACTION, options=LoadOptions())
        model.state, model.process = ModelState.READY, cast(ModelProcess, Process())
        self.registry._models[model_id] = model
        return model

    async def call(self, rpc: str = EMBED) -> ManagedModel | None:
        async with self.registry.use(A, rpc):
            return self.registry._models.get(A)

    @contextlib.asynccontextmanager
    async def waits(self) -> AsyncIterator[asyncio.Task[ManagedModel | None]]:
        """A call that waits for the model."""
        call = asyncio.create_task(self.call())
        await until(lambda: bool(self.registry.waiting_calls()))
        yield call


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    plane, restores = ControlPlane(), Restores()
    settings = TextSettings(cache_dir=tmp_path, fork_server=False)
    files = ModelFiles("127.0.0.1:1", tmp_path)
    demand = Demand(plane.want, 100)
    async with Registry(settings, files, restores, demand=demand) as registry:
        yield Front(registry, plane, restores)


async def test_a_call_waits_for_a_model_that_is_absent(front: Front) -> None:
    async with front.waits() as call:
        model = front.put()
        front.plane.go_on.set()
        assert await call is model
    assert front.plane.wants == [(A, EMBED)]
    assert await front.call() is model  # without asking
    assert len(front.plane.wants) == 1


async def test_nothing_is_asked_unless_models_are_loaded_for_calls(front: Front) -> None:
    front.restores.replace(())
    with pytest.raises(ModelNotLoadedError, match="call LoadModel first"):
        await front.call()
    assert front.plane.wants == []


async def test_a_call_of_another_type_does_not_wait(front: Front) -> None:
    front.put().state = ModelState.LOADING
    with pytest.raises(PipelineMismatchError):
        await front.call("GenerateText")
    assert front.plane.wants == []


async def test_a_model_that_never_comes_here_is_not_asked_for_without_end(front: Front) -> None:
    front.plane.go_on.set()
    with pytest.raises(WorkerUnavailableError, match="not on this replica"):
        await front.call()
    assert len(front.plane.wants) == MAX_BRINGS


async def test_a_closed_model_ends_its_calls_and_new_ones_wait(front: Front) -> None:
    model = front.put()
    async with contextlib.AsyncExitStack() as running:
        await running.enter_async_context(front.registry.use(A, EMBED))
        unload = asyncio.create_task(front.registry.unload(A, if_idle=True, idle_within=600))
        await until(lambda: model.closed > 0)
        async with front.waits() as call:
            assert (model.calls, model.state) == (1, ModelState.READY)
            await running.aclose()
            assert await unload
            assert front.registry.models() == []
            again = front.put()
            front.plane.go_on.set()
            assert await call is again


async def test_a_model_whose_calls_do_not_end_takes_calls_again(front: Front) -> None:
    model = front.put()
    async with front.registry.use(A, EMBED):
        assert not await front.registry.unload(A, if_idle=True, idle_within=0.01)
        assert (model.closed, model.state) == (0, ModelState.READY)
        assert await front.call() is model
        close = asyncio.create_task(front.registry.unload(A, if_idle=True, idle_within=600))
        await until(lambda: model.closed > 0)
        close.cancel()  # the control plane has gone away
        await asyncio.wait({close})
        assert await front.call() is model
    assert front.plane.wants == []
