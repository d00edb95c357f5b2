"""The container's entry point: real Envoys beside the shared stack's own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import yaml

from ml import common_pb2 as common_pb
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from stack.envoy import Admin
from stack.envoy_config import native_config
from stack.ports import Ports
from tests.support.own_envoy import Start, entry_point, wait_for_upstream
from tests.support.stack import EMBEDDER, Stack, open_channel
from tools.descriptor_set import descriptor_set
from tools.dev_certs import make_certificates


@pytest.mark.parametrize(
    ("tls", "endpoint", "listeners"),
    [
        (False, "", {"grpc", "metrics"}),
        (True, "http://collector.example:4444", {"grpc", "grpc_tls", "grpc_mtls", "metrics"}),
    ],
)
def test_the_entry_point_adds_the_parts_that_are_asked_for(
    tmp_path: Path, tls: bool, endpoint: str, listeners: set[str]
) -> None:
    if tls:
        make_certificates(tmp_path / "tls")
    environment = {"TLS_DIR": str(tmp_path / "tls"), "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    process = entry_point(tmp_path, None, "--mode", "validate", **environment)
    assert process.wait(60) == 0, (tmp_path / "envoy.log").read_text()
    config = yaml.safe_load((tmp_path / "envoy.yaml").read_text())
    names = {one["name"] for one in config["static_resources"]["listeners"]}
    assert names == listeners | {"wait"}  # which has no port
    collectors = [
        one["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
        for one in config["static_resources"]["clusters"]
        if one["name"] == "otel_collector"
    ]
    expected = {"socket_address": {"address": "collector.example", "port_value": 4444}}
    assert collectors == ([expected] if endpoint else [])


@pytest.mark.parametrize("endpoint", ["https://collector:4317", "collector:4317", "http://a b"])
def test_an_endpoint_that_envoy_cannot_use_is_reported(tmp_path: Path, endpoint: str) -> None:
    process = entry_point(tmp_path, None, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert process.wait(60) == 1
    assert "must be http://HOST:PORT" in (tmp_path / "envoy.log").read_text()


def test_a_wrong_configuration_ends_the_entry_point(tmp_path: Path, envoy_ports: Ports) -> None:
    config = native_config(envoy_ports, generated=tmp_path)
    config["no_such_field"] = 1
    assert entry_point(tmp_path, config).wait(60) != 0


def test_a_drain_loses_no_call(
    stack: Stack, start: Start, envoy_ports: Ports, tmp_path: Path
) -> None:
    entry = start(native_config(envoy_ports, generated=tmp_path))
    address = f"127.0.0.1:{envoy_ports.envoy}"
    admin = Admin(envoy_ports.envoy_admin)
    wait_for_upstream(admin)

    def call_until_refused() -> tuple[int, str]:
        """The number of calls that were served, and the error of the first that was not."""
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
        # The callers are refused by now, while this stream, which began before, goes on.
        assert entry.poll() is None
        received = len(first.data) + sum(len(chunk.data) for chunk in chunks)
    assert received == first.total_size
    assert entry.wait(60) == 0
    for served, refusal in outcomes:
        assert served
        # Refused on connecting: no call was accepted and then dropped.
        assert "failed to connect" in refusal.lower(), refusal


def test_a_stuck_call_delays_the_stop_by_the_drain_time_at_most(
    stack: Stack, start: Start, envoy_ports: Ports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAIN_SECONDS", "2")
    entry = start(native_config(envoy_ports, generated=tmp_path))
    admin = Admin(envoy_ports.envoy_admin)
    wait_for_upstream(admin)
    with open_channel(f"127.0.0.1:{envoy_ports.envoy}") as channel:
        # A stream that is not read.
        request = models_pb.ModelFileRequest(model_id=EMBEDDER, file_path="model.safetensors")
        chunks = models_grpc.ModelManagementServiceStub(channel).GetModelFile(request)
        next(chunks)
        entry.terminate()
        assert entry.wait(60) == 0
        chunks.cancel()


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
