"""The main job in containers, by the client of the published contract."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from ml import common_pb2
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_rpc
from tests.containers.containers import ContainerSet, free_port
from tests.contract.test_published_client import check_main_job, run_client
from tests.support.stack import CHAT, ROOT, SERVICES, is_healthy, wait_for


@pytest.fixture
def envoy_alone(images: None, models: Path, tmp_path: Path) -> Iterator[ContainerSet]:
    """Envoy, with nothing behind it."""
    containers = ContainerSet(tmp_path)
    try:
        containers.up("envoy")
        yield containers
    finally:
        containers.down()


def test_the_main_job(containers: ContainerSet, stubs: Path, models: Path) -> None:
    check_main_job(run_client(stubs, containers.address, models))


def test_health_of_each_service(containers: ContainerSet) -> None:
    with grpc.insecure_channel(containers.address) as channel:
        for service in SERVICES:
            wait_for(f"health of {service}", lambda name=service: is_healthy(channel, name))


def test_envoy_accepts_while_nothing_is_behind_it(envoy_alone: ContainerSet) -> None:
    with grpc.insecure_channel(envoy_alone.address) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        stub = models_rpc.ModelManagementServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            stub.GetLoadedModels(common_pb2.EmptyRequest(), timeout=90)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failure.value.details() == "the service is down, and did not start within 30 s"


def test_the_main_job_from_the_first_second(
    images: None, models: Path, stubs: Path, tmp_path: Path
) -> None:
    """The client does not wait for the services, nor try again: its calls wait."""
    containers = ContainerSet(tmp_path)
    try:
        containers.up("envoy", "model_mgmt", "text", "vision", "http", "provider")
        with grpc.insecure_channel(containers.address) as channel:
            # Docker accepts connections before Envoy listens, and breaks them off.
            grpc.channel_ready_future(channel).result(timeout=30)
        check_main_job(run_client(stubs, containers.address, models))
    finally:
        containers.down()


@pytest.fixture
def provider_port(models: Path) -> Iterator[int]:
    """A file provider on this machine, in the application's place."""
    port = free_port()
    command = [sys.executable, "-m", "tools.dev_provider", "--host", "0.0.0.0"]
    command += ["--port", str(port), "--root", str(models / "text")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline().startswith(b"serving")
        yield port
        process.terminate()


@pytest.fixture
def without_demo(images: None, provider_port: int, tmp_path: Path) -> Iterator[ContainerSet]:
    """Envoy and model_mgmt, with the application on this machine."""
    address = f"host.docker.internal:{provider_port}"
    containers = ContainerSet(tmp_path, profiles=(), FILE_PROVIDER_ADDR=address)
    try:
        containers.up("envoy", "model_mgmt")
        containers.wait_healthy("envoy", "model_mgmt")
        yield containers
    finally:
        containers.down()


def test_model_files_come_from_this_machine(without_demo: ContainerSet, models: Path) -> None:
    with grpc.insecure_channel(without_demo.address) as channel:
        stub = models_rpc.ModelManagementServiceStub(channel)
        request = models_pb.ModelFileRequest(model_id=CHAT, file_path="config.json")
        chunks = list(stub.GetModelFile(request, timeout=60))
    content = b"".join(chunk.data for chunk in chunks)
    assert content == (models / "text" / CHAT / "config.json").read_bytes()
