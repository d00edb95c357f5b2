"""The life of a server process: health, reflection, settings in the log, SIGTERM, a taken port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from tests.support.processes import free_port
from tests.support.stack import wait_for

PROGRAM = """
import asyncio, logging, os
import grpc
from pydantic import SecretStr
from shared.rpc.admission import Admission
from shared.rpc.server import main, serve
from shared.settings import ServerSettings
from ml import transformers_pb2, transformers_pb2_grpc as rpc

class Settings(ServerSettings):
    token: SecretStr = SecretStr("hunter2")

class Text(rpc.TransformersServiceServicer):
    async def ChatCompletion(self, request, context):
        try:
            await context.abort(grpc.StatusCode.ABORTED, "at once")
        finally:
            await asyncio.sleep(1.5)
            logging.info("released")

    async def GenerateText(self, request, context):
        for i in range(int(request.prompt)):
            yield transformers_pb2.TextResponse(text=str(i))
            await asyncio.sleep(0.05)
        yield transformers_pb2.TextResponse(done=True)

register = lambda server, _: rpc.add_TransformersServiceServicer_to_server(Text(), server)
wait = os.environ.get("ADMISSION_SECONDS")
admission = Admission(float(wait)) if wait else None
run = lambda settings: serve(
    settings, ["ml.TransformersService"], register, admission=admission
)
main("test", Settings, run)
"""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ROOT = Path(__file__).resolve().parents[4]


class Server:
    """A process that serves `PROGRAM` on a free port."""

    def __init__(self, **env: str) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdout=subprocess.PIPE,  # the logs alone: gRPC's own lines on stderr are no JSON
            text=True,
            cwd=ROOT,
            env=os.environ
            | {"PORT": str(self.port), "DRAIN_SECONDS": "0", "GRACE_SECONDS": "60"}
            | env,
        )
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def status(self, name: str = "ml.TransformersService") -> int:
        request = health_pb2.HealthCheckRequest(service=name)
        return int(self.health.Check(request, wait_for_ready=True, timeout=60).status)

    def wait(self, name: str = "ml.TransformersService") -> None:
        wait_for("SERVING", lambda: self.status(name) == SERVING)

    def lines(self) -> list[dict]:
        output, _ = self.process.communicate(timeout=120)
        return [json.loads(line) for line in output.splitlines()]


def _serve(**env: str) -> Iterator[Server]:
    server = Server(**env)
    yield server
    server.channel.close()
    server.process.kill()
    server.process.communicate()


@pytest.fixture
def server() -> Iterator[Server]:
    yield from _serve()


@pytest.fixture
def draining_server() -> Iterator[Server]:
    """One that takes calls for so long after the signal that a slow machine gets one through."""
    yield from _serve(DRAIN_SECONDS="3")


def test_sigterm_drains_and_exits_with_0(draining_server: Server) -> None:
    from ml import transformers_pb2, transformers_pb2_grpc

    server = draining_server
    server.wait()
    stub = transformers_pb2_grpc.TransformersServiceStub(server.channel)
    stream = stub.GenerateText(transformers_pb2.TextRequest(prompt="90"))  # longer than the drain
    assert next(stream).text == "0"
    watch = server.health.Watch(health_pb2.HealthCheckRequest(service=""))
    assert next(watch).status == SERVING
    os.kill(server.process.pid, signal.SIGTERM)
    assert next(watch).status == NOT_SERVING
    watch.cancel()  # an open one would hold the server for its whole grace
    late = stub.GenerateText(transformers_pb2.TextRequest(prompt="1"))
    assert [m.done for m in late] == [False, True], "calls are taken until the proxy has noticed"
    assert list(stream)[-1].done, "a running call is finished"
    lines = server.lines()
    assert server.process.returncode == 0
    (settings,) = [line["settings"] for line in lines if line["message"] == "settings"]
    assert settings["drain_seconds"] == 3
    assert settings["token"] == "**********"
    assert {"listening", "serving", "draining", "stopped"} <= {line["message"] for line in lines}
    ended = [line for line in lines if line["message"] == "call ended"]
    assert [line["grpc_code"] for line in ended] == ["OK", "OK"]
    assert all(line["request_id"] for line in ended)


def test_a_handler_finishes_though_its_call_has_ended(server: Server) -> None:
    from ml import transformers_pb2, transformers_pb2_grpc

    server.wait()
    stub = transformers_pb2_grpc.TransformersServiceStub(server.channel)
    with pytest.raises(grpc.RpcError, match="at once"):
        list(stub.ChatCompletion(transformers_pb2.ChatRequest()))
    os.kill(server.process.pid, signal.SIGTERM)
    messages = [line["message"] for line in server.lines()]
    assert messages[-2:] == ["released", "stopped"]


def test_the_process_serves_while_its_service_waits_to_be_let_in() -> None:
    server = Server(ADMISSION_SECONDS="600")
    try:
        server.wait(name="")
        assert server.status() == NOT_SERVING
        os.kill(server.process.pid, signal.SIGTERM)
        messages = [line["message"] for line in server.lines()]
        assert server.process.returncode == 0
        assert "serving" not in messages
        assert messages[-1] == "stopped"
    finally:
        server.channel.close()
        server.process.kill()


def test_a_service_without_a_control_plane_admits_itself() -> None:
    server = Server(ADMISSION_SECONDS="0.2")
    try:
        server.wait()
    finally:
        server.channel.close()
        server.process.kill()
        server.process.communicate()


def test_a_taken_port_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PORT": str(port)},
            timeout=60,
        )
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


def test_wrong_settings_are_a_line_each() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PORT": "70000", "GRACE_SECONDS": "long"},
        timeout=60,
    )
    assert result.returncode == 1
    port, grace = result.stderr.splitlines()
    assert port == "PORT=70000: Input should be less than or equal to 65535"
    assert grace.startswith("GRACE_SECONDS=long: Input should be a valid number")


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(server: Server, version: str) -> None:
    server.wait()
    reflect = server.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="ml.TransformersService"),
        reflection_pb2.ServerReflectionRequest(
            file_containing_symbol=f"grpc.reflection.{version}.ServerReflection"
        ),
    ]
    names, ours, itself = reflect(iter(requests), timeout=30)
    served = {service.name for service in names.list_services_response.service}
    assert {
        "ml.TransformersService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    } <= served
    for answer in (ours, itself):
        files = answer.file_descriptor_response.file_descriptor_proto
        assert all(descriptor_pb2.FileDescriptorProto.FromString(file).package for file in files)
        assert files
