"""Calls over the limit are refused with the number; health is answered all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc as rpc
from shared.caller import CALLER_KEY
from shared.rpc.server import create_server
from shared.settings import ServerSettings
from tests.support.waiting import until


class _Text(rpc.TransformersServiceServicer):
    def __init__(self) -> None:
        self.running = 0

    async def GenerateText(
        self, request: pb.TextRequest, context: Any
    ) -> AsyncIterator[pb.TextResponse]:
        self.running += 1
        try:
            yield pb.TextResponse(text="begun")
            await asyncio.Event().wait()
        finally:
            self.running -= 1

    async def Infer(self, request: pb.InferRequest, context: Any) -> pb.InferResponse:
        return pb.InferResponse(text="done")


async def test_calls_over_the_limit_are_refused() -> None:
    text = _Text()
    server = create_server(ServerSettings(max_concurrent_calls=2))
    rpc.add_TransformersServiceServicer_to_server(text, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.TransformersServiceStub(channel)
        assert (await stub.Infer(pb.InferRequest())).text == "done"
        running = [stub.GenerateText(pb.TextRequest()) for _ in range(2)]
        for call in running:
            assert (await call.read()).text == "begun"
        refusal = "2 calls are running, and the limit is 2"
        with pytest.raises(grpc.aio.AioRpcError, match=refusal) as one:
            await stub.Infer(pb.InferRequest())
        assert one.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "grpc-status-details-bin" in dict(one.value.trailing_metadata() or ())
        with pytest.raises(grpc.aio.AioRpcError, match="the limit is 2"):
            await stub.GenerateText(pb.TextRequest()).read()
        check = health_pb2_grpc.HealthStub(channel).Check
        for _ in range(3):
            status = (await check(health_pb2.HealthCheckRequest())).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        running.pop().cancel()
        await until(lambda: text.running == 1)
        assert (await stub.Infer(pb.InferRequest())).text == "done"
    await server.stop(0)


async def test_one_caller_leaves_room() -> None:
    text = _Text()
    server = create_server(ServerSettings(max_concurrent_calls=3, max_calls_per_caller=2))
    rpc.add_TransformersServiceServicer_to_server(text, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.TransformersServiceStub(channel)
        alice = ((CALLER_KEY, "alice"),)
        running = [stub.GenerateText(pb.TextRequest(), metadata=alice) for _ in range(2)]
        for call in running:
            assert (await call.read()).text == "begun"
        with pytest.raises(grpc.aio.AioRpcError, match="2 calls of this caller are running") as one:
            await stub.Infer(pb.InferRequest(), metadata=alice)
        assert one.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await stub.Infer(pb.InferRequest(), metadata=((CALLER_KEY, "bob"),))
        await stub.Infer(pb.InferRequest())
        for call in running:
            call.cancel()
        await until(lambda: not text.running)
        await stub.Infer(pb.InferRequest(), metadata=alice)
    await server.stop(None)
