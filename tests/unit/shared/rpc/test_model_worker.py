"""The servicer that text_svc and vision_svc share, over a host of models that is a dict."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping

import grpc
import pytest

from ml.internal import worker_pb2 as pb
from ml.internal import worker_pb2_grpc as pb_grpc
from shared.errors import ModelNotLoadedError
from shared.model_host import (
    HOST,
    HostedModel,
    LoadProgress,
    MemoryPool,
    ModelNames,
    ModelState,
    Restores,
    follow_load,
)
from shared.model_ids import ModelId
from shared.pipelines import find_pipeline
from shared.rpc.admission import Admission
from shared.rpc.epochs import EPOCH_KEY, passed_by
from shared.rpc.interceptors import ErrorInterceptor
from shared.rpc.model_worker import ModelWorkerServicer
from shared.rpc.status import from_details


class Host:
    """Loads at once."""

    def __init__(self) -> None:
        self.held: dict[ModelId, HostedModel] = {}

    async def load(
        self, model_id: ModelId, pipeline_type: str, options: Mapping[str, str]
    ) -> AsyncIterator[LoadProgress]:
        model = HostedModel(model_id, find_pipeline(pipeline_type), dict(options))

        async def load() -> None:
            model.bytes_fetched = model.bytes_total = 3
            model.state = ModelState.LOADING
            model.ram_bytes, model.loaded_at, model.engine = 5, 7, "openvino"
            model.reserved = {HOST: 40}
            model.state = ModelState.READY

        self.held[model_id] = model
        async for progress in follow_load(model, asyncio.create_task(load())):
            yield progress

    async def measure(self) -> None:
        for model in self.held.values():
            model.cache_bytes += 1

    def check(self, pipeline_type: str, options: Mapping[str, str]) -> Mapping[str, str]:
        find_pipeline(pipeline_type)
        return {"dtype": "float32", **options}

    async def unload(
        self, model_id: ModelId, *, if_idle: bool = False, idle_within: float = 0
    ) -> bool:
        self.idle_within = idle_within
        if model_id not in self.held:
            raise ModelNotLoadedError("not loaded")
        if if_idle and self.held[model_id].calls:
            return False
        del self.held[model_id]
        return True

    def memory(self) -> Iterable[MemoryPool]:
        return [MemoryPool(HOST, 100, 40), MemoryPool("cuda:0", 200, 0)]

    def waiting_calls(self) -> Mapping[ModelId, int]:
        return {ModelId("org/other"): 3}

    def models(self) -> Iterable[HostedModel]:
        return self.held.values()


@contextlib.asynccontextmanager
async def served(servicer: ModelWorkerServicer) -> AsyncIterator[pb_grpc.ModelWorkerStub]:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    pb_grpc.add_ModelWorkerServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pb_grpc.ModelWorkerStub(channel)
    await server.stop(None)


async def test_a_model_is_loaded_listed_and_unloaded() -> None:
    async with served(ModelWorkerServicer(Admission(60), Host())) as worker:
        request = pb.LoadRequest(
            model_id="models/org/name/model.safetensors",
            pipeline_type="chat",
            options={"dtype": "float32"},
        )
        reports = [report async for report in worker.Load(request)]
        states = list(dict.fromkeys(pb.ModelState.Name(report.state) for report in reports))
        assert states == [f"MODEL_STATE_{name}" for name in ("FETCHING", "LOADING", "READY")]
        assert [report.HasField("model") for report in reports[:-1]] == [False] * len(reports[:-1])
        assert reports[-1].bytes_fetched == reports[-1].bytes_total == 3
        model = reports[-1].model
        assert (model.model_id, model.pipeline_type) == ("org/name", "text-generation")
        assert (model.ram_bytes, model.loaded_at, model.engine) == (5, 7, "openvino")
        assert dict(model.options) == {"dtype": "float32"}
        (listed,) = (await worker.List(pb.ListRequest())).models
        assert listed.idle_seconds > model.idle_seconds
        listed.idle_seconds = model.idle_seconds
        assert listed.cache_bytes == 1  # measured for the list
        listed.cache_bytes = model.cache_bytes
        assert listed == model
        await worker.Unload(pb.UnloadRequest(model_id="org/name"))
        assert not (await worker.List(pb.ListRequest())).models


async def test_memory_is_listed_by_device() -> None:
    async with served(ModelWorkerServicer(Admission(60), Host())) as worker:
        request = pb.LoadRequest(model_id="org/name", pipeline_type="chat")
        [report async for report in worker.Load(request)]
        listed = await worker.List(pb.ListRequest())
    assert [(each.device, each.budget_bytes, each.reserved_bytes) for each in listed.memory] == [
        ("host", 100, 40),
        ("cuda:0", 200, 0),
    ]
    assert [dict(model.reserved) for model in listed.models] == [{"host": 40}]


async def test_a_model_that_answers_calls_stays_if_only_an_idle_one_may_go() -> None:
    host = Host()
    async with served(ModelWorkerServicer(Admission(60), host)) as worker:
        request = pb.LoadRequest(model_id="org/name", pipeline_type="chat")
        [report async for report in worker.Load(request)]
        if_idle = pb.UnloadRequest(model_id="org/name", if_idle=True)
        with host.held[ModelId("org/name")].in_use():
            assert (await worker.Unload(if_idle)).busy
        assert host.held
        assert not (await worker.Unload(if_idle)).busy
        assert not host.held


async def test_other_names_are_told_and_given_back() -> None:
    names = ModelNames()
    servicer = ModelWorkerServicer(Admission(60), Host(), names=names)
    life = pb.ModelLife(
        model_id="org/name", aliases=["chat"], options={"pin": "true", "aliases": "chat"}
    )
    async with served(servicer) as worker:
        await worker.TellModels(pb.TellModelsRequest(lives=[life]))
        assert list((await worker.List(pb.ListRequest())).lives) == [life]
        assert names.model_of(ModelId("chat")) == "org/name"
        assert names.model_of(ModelId("other")) == "other"
        await worker.TellModels(pb.TellModelsRequest())
        assert names.model_of(ModelId("chat")) == "chat"


def test_a_model_is_idle_while_ready_and_without_calls() -> None:
    model = HostedModel(ModelId("org/name"), find_pipeline("text-generation"))
    assert model.idle_seconds == 0
    model.state = ModelState.READY
    assert model.idle_seconds > 0
    with model.in_use():
        with model.in_use():
            pass
        assert model.idle_seconds == 0
    before = model.idle_seconds
    assert model.idle_seconds > before > 0


async def test_calls_that_wait_and_the_time_for_those_under_way_pass_through() -> None:
    host, restores = Host(), Restores()
    async with served(ModelWorkerServicer(Admission(60), host, restores)) as worker:
        assert dict((await worker.List(pb.ListRequest())).waiting_calls) == {"org/other": 3}
        request = pb.LoadRequest(model_id="org/name", pipeline_type="chat")
        [report async for report in worker.Load(request)]
        unload = pb.UnloadRequest(model_id="org/name", if_idle=True, idle_within_seconds=2.5)
        assert not (await worker.Unload(unload)).busy
        assert host.idle_within == 2.5
        assert not (await worker.List(pb.ListRequest())).told
        await worker.TellModels(pb.TellModelsRequest(auto_load=True))
        assert (await worker.List(pb.ListRequest())).told
        assert restores.auto_load
        await worker.TellModels(pb.TellModelsRequest())
        assert not restores.auto_load


async def test_a_replica_is_admitted() -> None:
    admission = Admission(60)
    async with served(ModelWorkerServicer(admission, Host())) as worker:
        assert not (await worker.List(pb.ListRequest())).admitted
        await worker.Admit(pb.AdmitRequest())
        assert admission.admitted
        assert (await worker.List(pb.ListRequest())).admitted


@pytest.mark.parametrize(
    ("model_id", "pipeline_type", "field"),
    [("", "chat", "model_id"), ("../x", "chat", "model_id"), ("a", "", "pipeline_type")],
)
async def test_a_bad_request_is_refused_before_the_host_is_asked(
    model_id: str, pipeline_type: str, field: str
) -> None:
    host = Host()
    async with served(ModelWorkerServicer(Admission(60), host)) as worker:
        request = pb.LoadRequest(model_id=model_id, pipeline_type=pipeline_type)
        with pytest.raises(grpc.aio.AioRpcError, match=field) as caught:
            [report async for report in worker.Load(request)]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not host.held


async def test_until_there_is_a_host_calls_are_unavailable() -> None:
    servicer = ModelWorkerServicer(Admission(60))
    async with served(servicer) as worker:
        with pytest.raises(grpc.aio.AioRpcError, match="starting") as caught:
            await worker.List(pb.ListRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        servicer.host = Host()
        assert not (await worker.List(pb.ListRequest())).models


async def test_calls_of_an_earlier_epoch_are_refused() -> None:
    admission = Admission(60)
    async with served(ModelWorkerServicer(admission, Host())) as worker:
        await worker.List(pb.ListRequest(), metadata=((EPOCH_KEY, "7"),))
        calls = {
            worker.Check: pb.LoadRequest(pipeline_type="chat"),
            worker.Unload: pb.UnloadRequest(model_id="org/name"),
            worker.List: pb.ListRequest(),
            worker.Admit: pb.AdmitRequest(),
            worker.TellModels: pb.TellModelsRequest(),
        }
        load = pb.LoadRequest(model_id="org/name", pipeline_type="chat")
        for call, request in calls.items():
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(request, metadata=((EPOCH_KEY, "6"),))
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            _ = [report async for report in worker.Load(load, metadata=((EPOCH_KEY, "6"),))]
        error = from_details(refused.value)
        assert error is not None
        assert error.message == "the call is of epoch 6, and epoch 7 has taken over"
        assert passed_by(error) == 7
        assert not admission.admitted
        for epoch in ("", "7", "8", "9" * 30, "x"):  # no number is no epoch
            await worker.List(pb.ListRequest(), metadata=((EPOCH_KEY, epoch),))
        with pytest.raises(grpc.aio.AioRpcError):
            await worker.List(pb.ListRequest(), metadata=((EPOCH_KEY, "7"),))
