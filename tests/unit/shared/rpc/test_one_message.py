"""Calls that end without a whole message get a status, whatever the kind of the call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc as rpc
from shared.rpc.server import create_server
from shared.settings import ServerSettings
from tests.support.http2 import CUT_CALLS, cut_call
from tests.support.waiting import until


class _Text(rpc.TransformersServiceServicer):
    def __init__(self) -> None:
        self.calls = 0

    async def GenerateText(
        self, request: pb.TextRequest, context: Any
    ) -> AsyncIterator[pb.TextResponse]:
        self.calls += 1
        yield pb.TextResponse(text=request.prompt)
        yield pb.TextResponse(done=True)

    async def Infer(self, request: pb.InferRequest, context: Any) -> pb.InferResponse:
        self.calls += 1
        return pb.InferResponse(text="done")


@pytest.fixture
async def served() -> AsyncIterator[tuple[_Text, str]]:
    text = _Text()
    server = create_server(ServerSettings())
    rpc.add_TransformersServiceServicer_to_server(text, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield text, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize("end", CUT_CALLS)
@pytest.mark.parametrize(
    "path",
    [
        "/ml.TransformersService/Infer",
        "/ml.TransformersService/GenerateText",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    ],
)
async def test_a_call_without_a_whole_message_is_invalid(
    served: tuple[_Text, str], path: str, end: str
) -> None:
    text, address = served
    status, message = await asyncio.to_thread(cut_call, address, path, end)
    assert (status, message) == ("3", "the call ended without a whole message")
    assert text.calls == 0


async def test_whole_calls_are_answered_as_before(served: tuple[_Text, str]) -> None:
    _, address = served
    async with grpc.aio.insecure_channel(address) as channel:
        stub = rpc.TransformersServiceStub(channel)
        assert (await stub.Infer(pb.InferRequest())).text == "done"
        said = [each.text async for each in stub.GenerateText(pb.TextRequest(prompt="hello"))]
        assert said == ["hello", ""]
        check = health_pb2_grpc.HealthStub(channel).Check
        status = (await check(health_pb2.HealthCheckRequest())).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_a_caller_that_goes_before_its_message_leaves_nothing_behind(
    served: tuple[_Text, str],
) -> None:
    text, address = served
    running = len(asyncio.all_tasks())
    async with grpc.aio.insecure_channel(address) as channel:
        calls = [channel.stream_stream("/ml.TransformersService/GenerateText")() for _ in range(3)]
        await asyncio.sleep(0.1)
        for call in calls:
            call.cancel()
    await until(lambda: len(asyncio.all_tasks()) <= running)
    assert text.calls == 0


async def test_a_watch_that_cannot_be_decoded_is_invalid(served: tuple[_Text, str]) -> None:
    _, address = served
    async with grpc.aio.insecure_channel(address) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\x0a\x05half", timeout=20)
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be decoded") as failure:
            await watch.read()
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
