"""Loading, unloading and listing over two replicas."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator

import pytest

from model_mgmt_svc.desired import DesiredModel
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.replicas import CONNECT_SECONDS, Replicas
from shared.errors import (
    CallCancelledError,
    InvalidModelError,
    ModelNotLoadedError,
    OutOfMemoryError,
    PipelineMismatchError,
    QueueFullError,
    UnknownOptionError,
    WorkerUnavailableError,
)
from tests.support.model_workers import RAM, ModelWorker
from tests.support.processes import free_port
from tests.support.waiting import until
from tests.unit.model_mgmt.conftest import Plane

MODEL = "org/name"
DESIRED = DesiredModel(MODEL, "text-generation", {"dtype": "float32"})
OTHER_TYPE = DesiredModel(MODEL, "feature-extraction")


@contextlib.asynccontextmanager
async def with_one_down(plane: Plane, *, alone: bool = False) -> AsyncIterator[Lifecycle]:
    """A lifecycle over a replica that is down, beside the first one or alone."""
    down = f"127.0.0.1:{free_port()}"
    addresses = down if alone else f"{down},{plane.first.address}"
    async with Replicas({"text": addresses}) as replicas:
        yield Lifecycle(replicas, plane.desired, plane.files.refresh)


async def test_a_model_is_loaded_on_every_replica(plane: Plane) -> None:
    model = await plane.lifecycle.load(DESIRED)
    assert (model.replicas, model.ram_bytes, model.vram_bytes) == (2, 2 * RAM, 0)
    for replica in plane.workers:
        (request,) = replica.loads
        assert (request.model_id, request.pipeline_type) == (MODEL, "text-generation")
        assert dict(request.options) == {"dtype": "float32"}
    assert plane.desired.all() == [DESIRED]
    assert await plane.lifecycle.loaded() == [model]


async def test_ten_callers_are_one_load(plane: Plane) -> None:
    models = await asyncio.gather(*(plane.lifecycle.load(DESIRED) for _ in range(10)))
    assert models == [models[0]] * 10
    assert [len(replica.loads) for replica in plane.workers] == [1, 1]


async def test_again_with_the_same_type_is_success_with_the_real_figures(plane: Plane) -> None:
    first = await plane.lifecycle.load(DESIRED)
    again = await plane.lifecycle.load(dataclasses.replace(DESIRED, options={}))
    assert again == first
    assert [len(replica.loads) for replica in plane.workers] == [1, 1]
    assert plane.desired.all() == [DESIRED]  # with the options that it really has


async def test_another_type_is_refused_while_loaded_and_while_loading(plane: Plane) -> None:
    plane.first.go_on.clear()
    loading = asyncio.create_task(plane.lifecycle.load(DESIRED))
    await until(lambda: bool(plane.first.loads))
    with pytest.raises(PipelineMismatchError, match="loaded as text-generation, not feature-"):
        await plane.lifecycle.load(OTHER_TYPE)
    plane.first.go_on.set()
    await loading
    with pytest.raises(PipelineMismatchError, match="unload it first"):
        await plane.lifecycle.load(OTHER_TYPE)
    assert plane.desired.all() == [DESIRED]
    await plane.lifecycle.unload(MODEL)
    assert (await plane.lifecycle.load(OTHER_TYPE)).pipeline_type == "feature-extraction"


async def test_one_that_goes_away_does_not_cancel_the_load_of_others(plane: Plane) -> None:
    plane.first.go_on.clear()
    gone, stays = (asyncio.create_task(plane.lifecycle.load(DESIRED)) for _ in range(2))
    await until(lambda: bool(plane.first.loads))
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    plane.first.go_on.set()
    assert (await stays).replicas == 2
    assert plane.first.cancelled == 0


async def leave(plane: Plane, model: DesiredModel = DESIRED) -> None:
    """A caller who asks for a load and goes away once the first replica loads, and waits."""
    load = asyncio.create_task(plane.lifecycle.load(model))
    await until(lambda: bool(plane.first.go_on._waiters))
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load


async def test_a_load_goes_on_without_callers_and_the_next_one_finds_it(plane: Plane) -> None:
    plane.first.go_on.clear()
    await leave(plane)
    joins = asyncio.create_task(plane.lifecycle.load(DESIRED))
    await asyncio.sleep(0.01)
    plane.first.go_on.set()
    assert (await joins).replicas == 2
    await plane.lifecycle.unload(MODEL)
    plane.first.go_on.clear()
    await leave(plane)
    plane.first.go_on.set()
    await until(lambda: not plane.lifecycle.is_loading(MODEL))
    assert (await plane.lifecycle.load(DESIRED)).replicas == 2
    assert [len(replica.loads) for replica in plane.workers] == [2, 2]
    assert plane.first.cancelled == 0
    assert plane.desired.all() == [DESIRED]


async def test_an_unload_ends_a_load_without_callers(plane: Plane) -> None:
    plane.first.go_on.clear()
    await leave(plane)
    await until(lambda: MODEL in plane.second.models)
    assert await plane.lifecycle.unload(MODEL) == 0  # the failed load has freed it already
    await until(lambda: plane.first.cancelled == 1)
    assert not plane.second.models
    assert plane.desired.all() == []


async def test_the_end_of_the_service_ends_a_load_without_callers(plane: Plane) -> None:
    plane.first.go_on.clear()
    await leave(plane)
    await plane.lifecycle.aclose()
    await until(lambda: plane.first.cancelled == 1)


async def test_the_next_caller_is_told_once_how_a_load_without_callers_failed(
    plane: Plane,
) -> None:
    plane.first.go_on.clear()
    plane.first.failures = [OutOfMemoryError("it needs 9 GiB"), OutOfMemoryError("and again")]
    await leave(plane)
    plane.first.go_on.set()
    await until(lambda: not plane.lifecycle.is_loading(MODEL))
    assert plane.desired.all() == []
    with pytest.raises(OutOfMemoryError, match="it needs 9 GiB"):
        await plane.lifecycle.load(DESIRED)
    assert len(plane.first.loads) == 1
    with pytest.raises(OutOfMemoryError, match="and again"):  # a caller was there
        await plane.lifecycle.load(DESIRED)
    assert (await plane.lifecycle.load(DESIRED)).replicas == 2


async def test_a_caller_with_other_options_or_much_later_is_not_told(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds, model in (60.0, dataclasses.replace(DESIRED, options={})), (0.0, DESIRED):
        monkeypatch.setattr("model_mgmt_svc.lifecycle.FAILED_SECONDS", seconds)
        plane.first.go_on.clear()
        plane.first.failures = [OutOfMemoryError("it needs 9 GiB")]
        await leave(plane)
        plane.first.go_on.set()
        await until(lambda: not plane.lifecycle.is_loading(MODEL))
        assert (await plane.lifecycle.load(model)).replicas == 2
        await plane.lifecycle.unload(MODEL)


async def test_models_that_load_at_once_have_a_limit(plane: Plane) -> None:
    lifecycle = Lifecycle(plane.replicas, plane.desired, plane.files.refresh, max_loads=2)
    plane.first.go_on.clear()
    names = ["org/one", "org/two"]
    loads = [
        asyncio.create_task(lifecycle.load(dataclasses.replace(DESIRED, model_id=name)))
        for name in [*names, *names]
    ]
    await until(lambda: len(plane.first.loads) == 2)
    with pytest.raises(QueueFullError, match="2 models are being loaded, which is the limit"):
        await lifecycle.load(DESIRED)
    plane.first.go_on.set()
    assert len(await asyncio.gather(*loads)) == 4
    assert (await lifecycle.load(DESIRED)).replicas == 2


async def test_other_options_than_those_in_force_are_told_during_a_load_and_after(
    plane: Plane,
) -> None:
    plane.first.go_on.clear()
    loads = [
        asyncio.create_task(plane.lifecycle.load(dataclasses.replace(DESIRED, options=options)))
        for options in ({}, {"dtype": "int8"}, {"engine": "openvino"}, {"dtype": "float32"})
    ]
    await until(lambda: bool(plane.first.loads))
    plane.first.go_on.set()
    notes = [(await load).note for load in loads]
    told = (
        "It keeps the options of its first load (dtype=float32); unload it to load it with "
        "dtype=int8"
    )
    assert notes == ["", told, "", ""]  # the others are the defaults
    again = await plane.lifecycle.load(dataclasses.replace(DESIRED, options={"dtype": "int8"}))
    assert again.note == told
    assert (await plane.lifecycle.load(DESIRED)).note == ""


async def test_options_are_checked_by_a_replica(plane: Plane) -> None:
    bad = dataclasses.replace(DESIRED, options={"speed": "11"})
    with pytest.raises(UnknownOptionError, match="unknown option 'speed'"):
        await plane.lifecycle.check(bad)
    await plane.first.stop()
    await plane.second.stop()
    assert await plane.lifecycle.check(bad) == bad.options  # nobody can tell


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("the model needs 9 GiB of 4 GiB"),
        InvalidModelError("no safetensors", field="model_id"),
        UnknownOptionError("option 'x' is not known", field="options"),
    ],
)
async def test_an_error_of_a_worker_arrives_as_it_is_and_leaves_nothing(
    plane: Plane, error: InvalidModelError
) -> None:
    plane.first.failures = [error]
    with pytest.raises(type(error)) as caught:
        await plane.lifecycle.load(DESIRED)
    assert (caught.value.message, caught.value.field) == (error.message, error.field)
    assert plane.desired.all() == []
    assert await plane.lifecycle.loaded() == []


async def test_a_caller_that_leaves_while_a_failed_load_is_cleaned_up_leaves_nothing(
    plane: Plane,
) -> None:
    plane.first.failures = [OutOfMemoryError("too large")]
    plane.second.frees.clear()
    load = asyncio.create_task(plane.lifecycle.load(DESIRED))
    await until(lambda: bool(plane.second.unloads))
    load.cancel()
    await asyncio.wait((load,))
    await asyncio.sleep(0.1)  # a cancelled unload would reach the worker now
    plane.second.frees.set()
    await until(lambda: not plane.second.models)
    assert await plane.lifecycle.loaded() == []


async def test_a_worker_that_never_frees_a_failed_load_blocks_no_caller(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_mgmt_svc.lifecycle.FREE_SECONDS", 0.2)
    plane.first.failures = [OutOfMemoryError("too large")]
    plane.second.frees.clear()
    with pytest.raises(OutOfMemoryError):
        await plane.lifecycle.load(DESIRED)


async def test_an_unload_is_done_before_the_service_ends(plane: Plane) -> None:
    await plane.lifecycle.load(DESIRED)
    plane.first.frees.clear()
    unload = asyncio.create_task(plane.lifecycle.unload(MODEL))
    await until(lambda: bool(plane.first.unloads))
    unload.cancel()
    end = asyncio.create_task(plane.lifecycle.aclose())
    plane.first.frees.set()
    await end
    assert not plane.first.models


async def test_a_load_that_fails_again_does_not_take_an_desired_model_away(plane: Plane) -> None:
    await plane.desired.put(DESIRED)
    plane.first.failures = [OutOfMemoryError("too large")]
    with pytest.raises(OutOfMemoryError):
        await plane.lifecycle.load(DESIRED)
    assert plane.desired.all() == [DESIRED]


async def test_a_replica_that_is_down_does_not_matter_while_another_is_up(plane: Plane) -> None:
    async with with_one_down(plane) as lifecycle:
        assert (await lifecycle.load(DESIRED)).replicas == 1
        assert [model.replicas for model in await lifecycle.loaded()] == [1]


async def test_with_all_down_a_load_is_unavailable(plane: Plane) -> None:
    async with with_one_down(plane, alone=True) as lifecycle:
        with pytest.raises(WorkerUnavailableError, match="text_svc") as caught:
            await lifecycle.load(DESIRED)
        assert caught.value.retry_after
        assert await lifecycle.loaded() == []
    assert plane.desired.all() == []


async def test_a_load_waits_for_a_service_that_is_starting(plane: Plane) -> None:
    port = free_port()
    async with Replicas({"text": f"127.0.0.1:{port}"}) as replicas:
        lifecycle = Lifecycle(replicas, plane.desired, plane.files.refresh, start_seconds=30)
        load = asyncio.create_task(lifecycle.load(DESIRED))
        await asyncio.sleep(CONNECT_SECONDS + 0.5)
        assert not load.done()
        async with ModelWorker().running(port):
            assert (await load).replicas == 1


async def test_a_load_does_not_wait_for_a_service_that_is_long_gone(plane: Plane) -> None:
    async with Replicas({"text": f"127.0.0.1:{free_port()}"}) as replicas:
        lifecycle = Lifecycle(replicas, plane.desired, plane.files.refresh, start_seconds=1)
        await asyncio.sleep(1)
        start = time.monotonic()
        with pytest.raises(WorkerUnavailableError):
            await lifecycle.load(DESIRED)
        assert time.monotonic() - start < 2 * CONNECT_SECONDS


async def test_a_worker_that_hangs_is_left_out_of_the_list(plane: Plane) -> None:
    await plane.lifecycle.load(DESIRED)
    plane.first.answers_lists.clear()
    (model,) = await plane.lifecycle.loaded()
    assert (model.replicas, model.ram_bytes) == (1, RAM)


async def test_unloading_frees_it_everywhere(plane: Plane) -> None:
    await plane.lifecycle.load(DESIRED)
    assert await plane.lifecycle.unload(MODEL) == 2
    assert not plane.first.models
    assert not plane.second.models
    assert plane.desired.all() == []
    with pytest.raises(ModelNotLoadedError, match="org/name' is not loaded"):
        await plane.lifecycle.unload(MODEL)


async def test_unloading_what_is_desired_and_not_there_makes_it_undesired(plane: Plane) -> None:
    await plane.desired.put(DESIRED)
    assert await plane.lifecycle.unload(MODEL) == 0
    assert plane.desired.all() == []


async def test_unloading_while_it_loads_tells_those_who_wait(plane: Plane) -> None:
    plane.first.go_on.clear()
    load = asyncio.create_task(plane.lifecycle.load(DESIRED))
    await until(lambda: bool(plane.first.loads))
    await plane.lifecycle.unload(MODEL)
    with pytest.raises(CallCancelledError, match="was unloaded while it was loading"):
        await load
    await until(lambda: plane.first.cancelled == 1)
    assert plane.desired.all() == []
    assert await plane.lifecycle.loaded() == []


async def test_a_restore_that_comes_after_an_unload_is_nobodys_failure(plane: Plane) -> None:
    """The load that a caller had asked for goes on after a restart of this service, or does not."""
    with pytest.raises(ModelNotLoadedError, match="no longer desired"):
        await plane.lifecycle.restore(dataclasses.replace(DESIRED, loading=True))
    assert plane.lifecycle.failed() == []
    assert (await plane.lifecycle.load(DESIRED)).replicas == 2


async def test_an_unload_goes_on_when_its_caller_goes_away(plane: Plane) -> None:
    await plane.lifecycle.load(DESIRED)
    unload = asyncio.create_task(plane.lifecycle.unload(MODEL))
    await asyncio.sleep(0)
    unload.cancel()
    await until(lambda: not plane.first.models and not plane.second.models)


async def test_many_loads_and_unloads_at_once_end_in_order(plane: Plane) -> None:
    allowed = ModelNotLoadedError, CallCancelledError

    async def one(i: int) -> None:
        with contextlib.suppress(allowed):
            await (plane.lifecycle.load(DESIRED) if i % 3 else plane.lifecycle.unload(MODEL))

    await asyncio.gather(*(one(i) for i in range(300)))
    wanted = bool(plane.desired.all())
    assert [MODEL in replica.models for replica in plane.workers] == [wanted, wanted]
    await plane.lifecycle.load(DESIRED)
    await plane.lifecycle.unload(MODEL)
    assert await plane.lifecycle.loaded() == []
