"""A replica that was drained by hand: what it says, what it still answers, when it is empty."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc as rpc
from ml.internal import worker_pb2, worker_pb2_grpc
from shared.rpc import drain_command
from shared.rpc.admission import Admission
from shared.rpc.drain import Drain
from shared.rpc.model_worker import ModelWorkerServicer
from shared.rpc.server import Health, create_server
from shared.settings import ServerSettings
from tests.support.waiting import until

NAME = "ml.TransformersService"
SERVING, NOT_SERVING = 1, 2


class Text(rpc.TransformersServiceServicer):
    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def GenerateText(self, request: pb.TextRequest, context: Any) -> AsyncIterator[Any]:
        yield pb.TextResponse(text="begun")
        await self.go_on.wait()
        yield pb.TextResponse(text="ended")

    async def Infer(self, request: pb.InferRequest, context: Any) -> pb.InferResponse:
        return pb.InferResponse(text="done")


@dataclass
class Served:
    text: Text
    drain: Drain
    health: Health
    address: str
    stub: rpc.TransformersServiceStub
    worker: worker_pb2_grpc.ModelWorkerStub
    now: list[float]

    async def status(self, name: str) -> int:
        request = health_pb2.HealthCheckRequest(service=name)
        return (await self.health.servicer.Check(request, None)).status

    async def becomes(self, status: int) -> None:
        async def reached() -> bool:
            return await self.status(NAME) == status

        await until(reached)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    now = [0.0]
    drain, text, admission = Drain(clock=lambda: now[0]), Text(), Admission(60)
    admission.admit()
    server = create_server(ServerSettings(), drain)
    health = Health([NAME])
    await health.set_all(False)
    rpc.add_TransformersServiceServicer_to_server(text, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    worker_pb2_grpc.add_ModelWorkerServicer_to_server(
        ModelWorkerServicer(admission, drain=drain), server
    )
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    opening = asyncio.create_task(health.open(admission, drain))
    async with grpc.aio.insecure_channel(address) as channel:
        stub, worker = (
            rpc.TransformersServiceStub(channel),
            worker_pb2_grpc.ModelWorkerStub(channel),
        )
        served = Served(text, drain, health, address, stub, worker, now)
        await served.becomes(SERVING)
        yield served
    opening.cancel()
    await server.stop(None)


def progress(report: worker_pb2.DrainResponse) -> tuple[int, bool]:
    return report.calls_in_flight, report.empty


async def test_calls_in_flight_go_on_and_it_tells_when_there_are_none(served: Served) -> None:
    stream = served.stub.GenerateText(pb.TextRequest())
    assert (await stream.read()).text == "begun"
    reports = served.worker.Drain(worker_pb2.DrainRequest())
    assert progress(await reports.read()) == (1, False)
    await served.becomes(NOT_SERVING)
    assert await served.status("") == SERVING  # nobody ends the process for it
    assert REGISTRY.get_sample_value("replica_drained") == 1

    assert (await served.stub.Infer(pb.InferRequest())).text == "done"  # Envoy may not know yet
    served.now[0] = 3.0
    with pytest.raises(grpc.aio.AioRpcError, match="drained by hand") as refused:
        await served.stub.Infer(pb.InferRequest())
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError, match="drained by hand"):
        await served.stub.GenerateText(pb.TextRequest()).read()

    served.text.go_on.set()
    assert (await stream.read()).text == "ended"
    assert progress(await reports.read()) == (0, True)
    assert await reports.read() is grpc.aio.EOF
    assert [progress(each) async for each in served.worker.Drain(worker_pb2.DrainRequest())] == [
        (0, True)
    ]


async def test_it_is_not_empty_while_calls_are_still_answered(served: Served) -> None:
    reports = served.worker.Drain(worker_pb2.DrainRequest())
    assert progress(await reports.read()) == (0, False)
    served.now[0] = 3.0
    assert progress(await reports.read()) == (0, True)


async def test_it_can_be_taken_back(served: Served) -> None:
    reports = served.worker.Drain(worker_pb2.DrainRequest())
    await reports.read()
    served.now[0] = 100.0
    await served.worker.Undrain(worker_pb2.UndrainRequest())
    with pytest.raises(grpc.aio.AioRpcError, match="the drain was ended") as ended:
        while await reports.read() is not grpc.aio.EOF:
            pass
    assert ended.value.code() is grpc.StatusCode.CANCELLED
    await served.becomes(SERVING)
    assert (await served.stub.Infer(pb.InferRequest())).text == "done"
    assert REGISTRY.get_sample_value("replica_drained") == 0
    await served.worker.Undrain(worker_pb2.UndrainRequest())  # of one that is not drained


async def test_it_stays_drained_when_its_caller_leaves(served: Served) -> None:
    reports = served.worker.Drain(worker_pb2.DrainRequest())
    await reports.read()
    reports.cancel()
    await served.becomes(NOT_SERVING)
    assert served.drain.drained


async def test_the_end_of_the_process_ends_a_drain_that_is_waited_for(served: Served) -> None:
    served.drain.begin()
    await served.health.stop()
    served.drain.end()
    for _ in range(3):
        await asyncio.sleep(0)
    assert await served.status(NAME) == NOT_SERVING


async def test_the_command(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    stream = served.stub.GenerateText(pb.TextRequest())
    await stream.read()
    command = asyncio.create_task(asyncio.to_thread(drain_command.drain, served.address))
    await until(lambda: "1 in flight" in capsys.readouterr().out)
    served.now[0] = 3.0
    served.text.go_on.set()
    assert await command == 0
    assert "is empty" in capsys.readouterr().out
    assert await asyncio.to_thread(drain_command.undrain, served.address) == 0
    assert not served.drain.drained
    with contextlib.suppress(asyncio.CancelledError):
        stream.cancel()


def test_the_command_without_a_replica(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain_command, "_CONNECT_SECONDS", 0.1)
    assert drain_command.drain("127.0.0.1:1") == 1
    assert "cannot be reached" in capsys.readouterr().out
    assert drain_command.undrain("127.0.0.1:1") == 1


async def test_a_drain_that_ends_while_its_begin_is_told_is_told_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drain, health = Drain(), Health(["ml.Some"])
    told: list[bool] = []

    async def tell(name: str, serving: bool) -> None:
        if name:
            told.append(serving)
            if told == [True, False]:
                drain.end()

    monkeypatch.setattr(health, "set", tell)
    opening = asyncio.create_task(health.open(drain=drain))
    await until(lambda: told == [True])
    drain.begin()
    await until(lambda: told == [True, False, True])
    opening.cancel()
