"""Two model_mgmt_svc with one state folder: one acts, the other takes over, and callers of a real
Envoy before both notice nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ml import common_pb2, model_management_pb2_grpc
from ml import model_management_pb2 as pb
from shared.errors import InvalidModelError
from tests.support.model_mgmt import ModelMgmt, failure_of, model_mgmt
from tests.support.model_workers import ModelWorker
from tests.support.own_envoy import envoy_before
from tests.support.processes import free_port, stack_ports
from tests.support.waiting import until

NAME = "ml.ModelManagementService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, 2
MODEL = "org/held"
CALLERS = 4


@pytest.fixture
async def worker() -> AsyncIterator[ModelWorker]:
    async with ModelWorker().running() as served:
        served.admitted = True
        yield served


async def state(service: ModelMgmt, name: str = NAME) -> int:
    stub: Any = health_pb2_grpc.HealthStub(service.channel)
    try:
        return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status
    except grpc.aio.AioRpcError:
        return 0


async def becomes(service: ModelMgmt, status: int) -> None:
    async def reached() -> bool:
        return await state(service) == status

    await until(reached)


def start(
    folder: Path, worker: ModelWorker, **more: str
) -> contextlib.AbstractAsyncContextManager[ModelMgmt]:
    return model_mgmt(folder, provider="127.0.0.1:1", text=worker.address, **more)


async def test_a_standby_says_so_and_takes_over(worker: ModelWorker, tmp_path: Path) -> None:
    async with start(tmp_path, worker) as first:
        await first.load(MODEL)
        await becomes(first, SERVING)
        async with start(tmp_path, worker) as second:
            assert await state(second, "") == SERVING
            assert await state(second) == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await second.models()
            failure = failure_of(refused.value)
            assert failure.code is grpc.StatusCode.UNAVAILABLE
            assert "standby" in failure.message
            async with start(tmp_path, worker) as third:  # one that is told to end while it waits
                assert await state(third) == NOT_SERVING
                third.process.terminate()
                assert await asyncio.to_thread(third.process.wait, 60) == 0
            first.process.kill()
            await becomes(second, SERVING)
            assert [model.model_id for model in await second.models()] == [MODEL]
            assert worker.loads[1:] == []  # what is loaded stays as it is
            assert worker.epochs == [1, 2]


async def test_a_holder_that_is_stopped_loses_the_lease_and_notices(
    worker: ModelWorker, tmp_path: Path
) -> None:
    async with start(tmp_path, worker, LEASE_SECONDS="1") as first:
        await becomes(first, SERVING)
        async with start(tmp_path, worker, LEASE_SECONDS="1") as second:
            assert await state(second) == NOT_SERVING
            first.process.send_signal(signal.SIGSTOP)
            await becomes(second, SERVING)
            await second.load(MODEL)
            first.process.send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(first.process.wait, 60) == 0
            assert await state(second) == SERVING
            assert list(worker.models) == [MODEL]
            record = (tmp_path / "state" / "desired_models.json").read_text()
            assert MODEL in record


async def killed(service: ModelMgmt) -> None:
    service.process.kill()
    await asyncio.to_thread(service.process.wait, 60)


async def test_killed_in_the_middle_of_an_unload_and_of_a_first_load(
    worker: ModelWorker, tmp_path: Path
) -> None:
    """The unload is finished; a load goes on, and one that fails leaves nothing desired."""
    kept, freed, bad = "org/kept", "org/freed", "org/bad"
    async with start(tmp_path, worker) as service:
        await service.load(kept)
        await service.load(freed)
        worker.frees.clear()
        calls = [asyncio.ensure_future(service.unload(freed))]
        await until(lambda: worker.unloads == [freed])
        worker.go_on.clear()
        calls.append(asyncio.ensure_future(service.load(bad)))
        await until(lambda: [load.model_id for load in worker.loads] == [kept, freed, bad])
        await killed(service)
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, grpc.aio.AioRpcError)
            assert outcome.code() is grpc.StatusCode.UNAVAILABLE
    worker.frees.set()
    assert freed in worker.models
    worker.failures.append(InvalidModelError("it is no model"))
    worker.go_on.set()
    async with start(tmp_path, worker) as service:
        await until(lambda: set(worker.models) == {kept})

        async def only_kept_is_desired() -> bool:
            answer = await service.stub.ListModels(pb.ListModelsRequest())
            return [model.model_id for model in answer.models if model.desired] == [kept]

        await until(only_kept_is_desired)
        answer = await service.stub.ListModels(pb.ListModelsRequest())
        assert {model.model_id: model.reason for model in answer.models} == {
            kept: "",
            bad: "it is no model",
        }
    assert "bad" not in (tmp_path / "state" / "desired_models.json").read_text()


async def steady(stub: model_management_pb2_grpc.ModelManagementServiceStub, seen: Counter[str]):
    """Calls without a pause; counts how they end."""
    while True:
        for call, request in (
            (stub.GetLoadedModels, common_pb2.EmptyRequest()),
            (stub.LoadModel, pb.LoadModelRequest(model_id=MODEL, pipeline_type="text-generation")),
            (stub.ListModels, pb.ListModelsRequest()),
        ):
            try:
                answer = await call(request, timeout=60)
                if isinstance(answer, common_pb2.StatusResponse | pb.LoadModelResponse):
                    assert answer.success
                else:
                    assert [model.model_id for model in answer.models] == [MODEL]
                seen["OK"] += 1
            except grpc.aio.AioRpcError as error:
                seen[error.code().name] += 1
            await asyncio.sleep(0.01)


async def test_a_rolling_restart_behind_envoy_loses_no_call(
    worker: ModelWorker, tmp_path: Path
) -> None:
    addresses = [free_port(), free_port()]
    ports = replace(stack_ports(), model_mgmt=addresses[0])

    def both(config: dict[str, Any]) -> None:
        (cluster,) = (
            c for c in config["static_resources"]["clusters"] if c["name"] == "model_mgmt"
        )
        (locality,) = cluster["load_assignment"]["endpoints"]
        address = {"address": "127.0.0.1", "port_value": addresses[1]}
        locality["lb_endpoints"].append({"endpoint": {"address": {"socket_address": address}}})

    async with contextlib.AsyncExitStack() as stack:

        async def started(port: int) -> ModelMgmt:
            # Longer than Envoy takes to notice that one no longer serves.
            return await stack.enter_async_context(
                start(tmp_path, worker, port=port, DRAIN_SECONDS="3", LEASE_SECONDS="2")
            )

        services = [await started(addresses[0])]
        await services[0].load(MODEL)
        await asyncio.to_thread(
            stack.enter_context, envoy_before(ports, tmp_path, {"model_mgmt"}, both)
        )
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{ports.envoy}")
        await stack.enter_async_context(channel)
        stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
        seen: Counter[str] = Counter()
        callers = [asyncio.create_task(steady(stub, seen)) for _ in range(CALLERS)]
        for port in (addresses[1], addresses[0]):
            services.append(await started(port))
            assert await state(services[-1]) == NOT_SERVING
            so_far = seen["OK"]
            await until(lambda before=so_far: seen["OK"] > before + 20)  # the old one answers
            services[-2].process.terminate()
            await becomes(services[-1], SERVING)
            assert await asyncio.to_thread(services[-2].process.wait, 60) == 0
            so_far = seen["OK"]
            await until(lambda before=so_far: seen["OK"] > before + 20)  # the new one answers
        assert seen.keys() == {"OK"}
        assert worker.epochs == [1, 2, 3]
        assert len(worker.loads) == 1

        # Killed, it loses the calls that it was answering at most.
        services.append(await started(addresses[1]))
        services[-2].process.kill()
        await becomes(services[-1], SERVING)
        so_far = seen["OK"]
        await until(lambda: seen["OK"] > so_far + 20)
        assert seen.keys() <= {"OK", "UNAVAILABLE"}
        assert seen["UNAVAILABLE"] <= CALLERS
        for caller in callers:
            assert not caller.done()
            caller.cancel()
