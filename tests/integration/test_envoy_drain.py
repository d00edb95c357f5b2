"""The container's entry point, and Envoy's limits: real Envoys beside the shared stack's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from ml import common_pb2 as common_pb
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from tests.support.stack import EMBEDDER, ROOT, Stack, open_channel, wait_for
from tools.descriptor_set import descriptor_set
from tools.dev_certs import make_certificates
from tools.stack import ports
from tools.stack.envoy import Admin, find_binary
from tools.stack.envoy_config import native_config
from tools.stack.ports import Ports

ENTRY_POINT = ROOT / "deploy" / "envoy" / "entrypoint.sh"

Start = Callable[[dict[str, Any]], subprocess.Popen[bytes]]


@pytest.fixture
def envoy_ports(stack: Stack) -> Ports:
    """Ports of an Envoy of its own in front of the services of the shared stack."""
    free = ports.choose_ports("auto", 0)
    known = {name: int(address.split(":")[1]) for name, address in stack.addresses.items()}
    services = {name: known[name] for name in ("model_mgmt", "text", "vision")}
    return replace(free, **services)


@pytest.fixture
def start(tmp_path: Path, envoy_ports: Ports) -> Iterator[Start]:
    """Starts the entry point with a configuration, and waits until the port accepts."""
    started: list[subprocess.Popen[bytes]] = []

    def run(config: dict[str, Any]) -> subprocess.Popen[bytes]:
        process = entry_point(tmp_path, config)
        started.append(process)
        wait_for("the start of Envoy", lambda: ports.accepts(envoy_ports.envoy))
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def entry_point(
    folder: Path, config: dict[str, Any] | None, *arguments: str, **environment: str
) -> subprocess.Popen[bytes]:
    """The entry point as a process group, with a configuration or the project's own file."""
    source = ROOT / "envoy.yaml"
    if config:
        source = folder / "source.yaml"
        source.write_text(yaml.safe_dump(config))
    (folder / "ml.binpb").write_bytes(descriptor_set())
    settings = {
        "ENVOY": str(find_binary()),
        "ENVOY_YAML": str(source),
        "DESCRIPTORS": str(folder / "ml.binpb"),
        "RUN_DIR": str(folder),
    }
    with (folder / "envoy.log").open("wb") as log:
        return subprocess.Popen(
            [ENTRY_POINT, "--disable-hot-restart", *arguments],
            env=os.environ | settings | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.mark.parametrize(
    ("tls", "endpoint", "listeners"),
    [
        (False, "", {"grpc", "metrics"}),
        (True, "http://collector.example:4444", {"grpc", "grpc_tls", "grpc_mtls", "metrics"}),
    ],
)
def test_the_entry_point_keeps_what_is_asked_for(
    tmp_path: Path, tls: bool, endpoint: str, listeners: set[str]
) -> None:
    if tls:
        make_certificates(tmp_path / "tls")
    environment = {"TLS_DIR": str(tmp_path / "tls"), "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    process = entry_point(tmp_path, None, "--mode", "validate", **environment)
    assert process.wait(60) == 0, (tmp_path / "envoy.log").read_text()
    config = yaml.safe_load((tmp_path / "envoy.yaml").read_text())
    assert {one["name"] for one in config["static_resources"]["listeners"]} == listeners
    collectors = [
        one["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
        for one in config["static_resources"]["clusters"]
        if one["name"] == "otel_collector"
    ]
    expected = {"socket_address": {"address": "collector.example", "port_value": 4444}}
    assert collectors == ([expected] if endpoint else [])


@pytest.mark.parametrize("endpoint", ["https://collector:4317", "collector:4317", "http://a b"])
def test_an_endpoint_that_envoy_cannot_use_is_told(tmp_path: Path, endpoint: str) -> None:
    process = entry_point(tmp_path, None, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert process.wait(60) == 1
    assert "must be http://HOST:PORT" in (tmp_path / "envoy.log").read_text()


def test_a_wrong_configuration_ends_the_entry_point(tmp_path: Path, envoy_ports: Ports) -> None:
    config = native_config(envoy_ports, descriptors=tmp_path / "ml.binpb")
    config["no_such_field"] = 1
    assert entry_point(tmp_path, config).wait(60) != 0


def test_a_drain_loses_no_call(
    stack: Stack, start: Start, envoy_ports: Ports, tmp_path: Path
) -> None:
    entry = start(native_config(envoy_ports, descriptors=tmp_path / "ml.binpb"))
    address = f"127.0.0.1:{envoy_ports.envoy}"
    admin = Admin(envoy_ports.envoy_admin)
    wait_for("a healthy upstream", lambda: "model_mgmt" in admin.healthy_clusters())

    def call_until_refused() -> tuple[int, str]:
        """How many calls were served, and how the first one failed that was not."""
        served = 0
        with open_channel(address) as channel:
            stub = models_grpc.ModelManagementServiceStub(channel)
            while True:
                try:
                    stub.GetLoadedModels(common_pb.EmptyRequest(), timeout=60)
                except grpc.RpcError as error:
                    return served, error.details() or ""
                served += 1

    with open_channel(address) as channel, ThreadPoolExecutor(4) as threads:
        request = models_pb.ModelFileRequest(model_id=EMBEDDER, file_path="model.safetensors")
        chunks = models_grpc.ModelManagementServiceStub(channel).GetModelFile(request)
        first = next(chunks)
        callers = [threads.submit(call_until_refused) for _ in range(4)]
        entry.terminate()
        outcomes = [caller.result(120) for caller in callers]
        # The callers are refused by now, and this stream, which began before, goes on.
        assert entry.poll() is None
        received = len(first.data) + sum(len(chunk.data) for chunk in chunks)
    assert received == first.total_size
    assert entry.wait(60) == 0
    for served, refusal in outcomes:
        assert served
        # Refused at the door: no call was taken and then dropped.
        assert "failed to connect" in refusal.lower(), refusal


def test_a_stuck_call_delays_the_stop_for_so_long_and_no_longer(
    stack: Stack, start: Start, envoy_ports: Ports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAIN_SECONDS", "2")
    entry = start(native_config(envoy_ports, descriptors=tmp_path / "ml.binpb"))
    admin = Admin(envoy_ports.envoy_admin)
    wait_for("a healthy upstream", lambda: "model_mgmt" in admin.healthy_clusters())
    with open_channel(f"127.0.0.1:{envoy_ports.envoy}") as channel:
        # A stream that nobody reads.
        request = models_pb.ModelFileRequest(model_id=EMBEDDER, file_path="model.safetensors")
        chunks = models_grpc.ModelManagementServiceStub(channel).GetModelFile(request)
        next(chunks)
        entry.terminate()
        assert entry.wait(60) == 0
        chunks.cancel()


def test_connections_over_the_limit_are_closed(
    stack: Stack, start: Start, envoy_ports: Ports, tmp_path: Path
) -> None:
    config = native_config(envoy_ports, descriptors=tmp_path / "ml.binpb")
    (limit,) = (
        monitor["typed_config"]
        for monitor in config["overload_manager"]["resource_monitors"]
        if "max_active_downstream_connections" in monitor["typed_config"]
    )
    assert limit["max_active_downstream_connections"] == 10_000
    limit["max_active_downstream_connections"] = 3
    start(config)
    admin = Admin(envoy_ports.envoy_admin)

    def answer(client: socket.socket) -> bytes:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            return client.recv(1024)
        return b""

    with contextlib.ExitStack() as opened:
        address = ("127.0.0.1", envoy_ports.envoy)
        # The look whether the port accepts was a connection too.
        wait_for("the end of all connections", lambda: admin.active_connections() == 0)
        clients = [
            opened.enter_context(socket.create_connection(address, timeout=30)) for _ in range(3)
        ]
        assert all(answer(client).startswith(b"HTTP/1.1 404") for client in clients)
        assert answer(opened.enter_context(socket.create_connection(address, timeout=30))) == b""
        # Prometheus still sees it.
        metrics = ("127.0.0.1", envoy_ports.envoy_metrics)
        with socket.create_connection(metrics, timeout=30) as scrape:
            assert answer(scrape).startswith(b"HTTP/1.1 404")
        clients[0].close()

        def served_again() -> bool:
            with socket.create_connection(address, timeout=30) as client:
                return answer(client).startswith(b"HTTP/1.1 404")

        wait_for("room for another connection", served_again)


def test_without_memory_calls_are_refused_and_connections_are_not(
    stack: Stack, start: Start, envoy_ports: Ports, tmp_path: Path
) -> None:
    config = native_config(envoy_ports, descriptors=tmp_path / "ml.binpb")
    (heap,) = (
        monitor["typed_config"]
        for monitor in config["overload_manager"]["resource_monitors"]
        if "max_heap_size_bytes" in monitor["typed_config"]
    )
    heap["max_heap_size_bytes"] = 1
    start(config)
    with open_channel(f"127.0.0.1:{envoy_ports.envoy}") as channel:
        stub = models_grpc.ModelManagementServiceStub(channel)

        def refusal() -> str:
            try:
                stub.GetLoadedModels(common_pb.EmptyRequest(), timeout=30)
            except grpc.RpcError as error:
                return f"{error.code().name} {error.details()}"
            return ""

        wait_for("a refusal for want of memory", lambda: refusal().startswith("UNAVAILABLE env"))
    page = urllib.request.urlopen(
        f"http://127.0.0.1:{envoy_ports.envoy_metrics}/stats/prometheus", timeout=30
    )
    with page:
        assert b"stop_accepting_requests_active{} 1" in page.read()


def test_the_descriptor_set_has_the_public_services_alone() -> None:
    from google.protobuf import descriptor_pb2

    files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set()).file
    services = {f"{file.package}.{one.name}" for file in files for one in file.service}
    config = json.dumps(native_config(Ports()))
    assert services == {
        "ml.ModelManagementService",
        "ml.TransformersService",
        "ml.MediapipeService",
    }
    assert all(f'"{service}"' in config for service in services)
    known: set[str] = set()
    for file in files:
        assert set(file.dependency) <= known
        known.add(file.name)
