"""Drain by hand behind a real Envoy: new calls go elsewhere, and streams go on to their end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc as rpc
from ml.internal import worker_pb2, worker_pb2_grpc
from shared.rpc.admission import Admission
from shared.rpc.drain import Drain
from shared.rpc.model_worker import ModelWorkerServicer
from shared.rpc.server import Health, create_server
from shared.settings import ServerSettings
from tests.support.own_envoy import envoy_before
from tests.support.processes import free_port, stack_ports
from tests.support.waiting import until

NAME = "ml.TransformersService"


class Replica(rpc.TransformersServiceServicer):
    """A replica of text_svc as its clients see it, with the server that every service has."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.go_on = asyncio.Event()
        self.drain = Drain()

    async def start(self, stack: AsyncExitStack, port: int) -> None:
        admission = Admission(600)
        admission.admit()
        server = create_server(ServerSettings(), self.drain)
        health = Health([NAME])
        await health.set_all(False)
        rpc.add_TransformersServiceServicer_to_server(self, server)
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
        worker = ModelWorkerServicer(admission, drain=self.drain)
        worker_pb2_grpc.add_ModelWorkerServicer_to_server(worker, server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        stack.push_async_callback(server.stop, None)
        opening = asyncio.create_task(health.open(admission, self.drain))
        stack.callback(opening.cancel)

    async def GenerateText(self, request: pb.TextRequest, context: Any) -> AsyncIterator[Any]:
        yield pb.TextResponse(text=self.name)
        await self.go_on.wait()
        yield pb.TextResponse(text="ended", done=True)

    async def Infer(self, request: pb.InferRequest, context: Any) -> pb.InferResponse:
        return pb.InferResponse(text=self.name)


async def test_new_calls_go_elsewhere_and_streams_go_on(tmp_path: Path) -> None:
    addresses = [free_port(), free_port()]
    ports = replace(stack_ports(), text=addresses[0])

    def both(config: dict[str, Any]) -> None:
        (cluster,) = (c for c in config["static_resources"]["clusters"] if c["name"] == "text")
        (locality,) = cluster["load_assignment"]["endpoints"]
        address = {"address": "127.0.0.1", "port_value": addresses[1]}
        locality["lb_endpoints"].append({"endpoint": {"address": {"socket_address": address}}})

    async with AsyncExitStack() as stack:
        replicas = {name: Replica(name) for name in ("one", "two")}
        for name, port in zip(replicas, addresses, strict=True):
            await replicas[name].start(stack, port)
        envoy = envoy_before(ports, tmp_path, {"text"}, both)
        await asyncio.to_thread(stack.enter_context, envoy)
        envoy_channel = grpc.aio.insecure_channel(f"127.0.0.1:{ports.envoy}")
        channel = await stack.enter_async_context(envoy_channel)
        own_channel = grpc.aio.insecure_channel(f"127.0.0.1:{addresses[0]}")
        worker = worker_pb2_grpc.ModelWorkerStub(await stack.enter_async_context(own_channel))
        stub = rpc.TransformersServiceStub(channel)
        seen: Counter[str] = Counter()

        async def call() -> None:
            while True:
                try:
                    seen[(await stub.Infer(pb.InferRequest(), timeout=60)).text] += 1
                except grpc.aio.AioRpcError as error:
                    seen[error.code().name] += 1
                await asyncio.sleep(0.01)

        calls = asyncio.create_task(call())
        await until(lambda: seen["one"] > 0 and seen["two"] > 0)
        streams = []
        while replicas["one"].drain.calls == 0:
            streams.append(stub.GenerateText(pb.TextRequest()))
            await streams[-1].read()

        reports = worker.Drain(worker_pb2.DrainRequest())
        assert not (await reports.read()).empty
        await until(lambda: replicas["one"].drain.refuses)
        seen["one"] = 0
        more = seen["two"] + 20
        await until(lambda: seen["two"] > more)
        assert seen["one"] == 0
        assert seen.keys() == {"one", "two"}
        for replica in replicas.values():
            replica.go_on.set()
        for stream in streams:
            assert (await stream.read()).done
        report = await reports.read()
        while not report.empty:
            report = await reports.read()

        await worker.Undrain(worker_pb2.UndrainRequest())
        await until(lambda: seen["one"] > 0)
        assert seen.keys() == {"one", "two"}
        calls.cancel()
