"""The main job in containers, by the client of the published contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from ml import common_pb2
from ml import model_management_pb2_grpc as models_rpc
from tests.containers.containers import ContainerSet
from tests.contract.test_published_client import check_main_job, run_client
from tests.support.stack import SERVICES, is_healthy, wait_for


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
            stub.GetLoadedModels(common_pb2.EmptyRequest(), timeout=30)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
