"""The models in a volume: fetched by a container of their own, or missing with a message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from docker.models.containers import Container

from ml import mediapipe_pb2, mediapipe_pb2_grpc
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_rpc
from tests.containers.containers import SERVICES, ContainerSet, execute, started_at
from tests.contract.test_published_client import check_main_job, run_client
from tests.support.stack import CHAT, wait_for

# All the packages and two conversions.
FETCH_SECONDS = 600
# Without a network each source is tried before it is given up.
GIVE_UP_SECONDS = 300
FACE_MODEL = "blaze_face_short_range.tflite"

WITHOUT_NETWORK = """
services:
  models: {environment: {PIP_RETRIES: "0"}} # by default six tries of each package: three minutes
networks:
  downloads: {internal: true}
"""


@pytest.fixture
def fresh(images: None, tmp_path: Path) -> Iterator[ContainerSet]:
    """The containers as on a fresh clone: with an empty volume for the models."""
    containers = ContainerSet(tmp_path, MODELS="models")
    try:
        yield containers
    finally:
        containers.down()


@pytest.fixture
def offline(images: None, tmp_path: Path) -> Iterator[ContainerSet]:
    """The same, where no source of the models can be reached."""
    override = tmp_path / "without-network.yml"
    override.write_text(WITHOUT_NETWORK)
    containers = ContainerSet(tmp_path, overrides=[override], MODELS="models")
    try:
        yield containers
    finally:
        containers.down()


def wait_until_ended(container: Container, seconds: float) -> tuple[int, str]:
    """Waits until the container has ended: its exit status and its log."""

    def ended() -> bool:
        container.reload()
        return container.status == "exited"

    wait_for("the end of the fetch", ended, seconds)
    return container.attrs["State"]["ExitCode"], container.logs().decode()


def face_detection_failure(address: str, picture: bytes) -> str:
    """The message of DetectFaces without its model."""
    with grpc.insecure_channel(address) as channel:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            stub.DetectFaces(mediapipe_pb2.ImageRequest(image_data=picture, format="png"))
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    return failure.value.details() or ""


def test_a_fresh_volume_is_filled_and_the_main_job_runs(
    fresh: ContainerSet, stubs: Path, models: Path
) -> None:
    fresh.up()
    with grpc.insecure_channel(fresh.address) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)  # Envoy waits for no model
    fresh.wait_healthy("envoy", *SERVICES)
    vision = fresh.one("vision")
    started = started_at(vision)

    status, log = wait_until_ended(fresh.one("models"), FETCH_SECONDS)
    assert status == 0, log
    assert "done in" in log  # progress
    check_main_job(run_client(stubs, fresh.address, models))
    assert started_at(vision) == started
    for reader in ("vision", "provider"):
        code, _ = execute(fresh.one(reader), "sh", "-c", ": > /models/probe")
        assert code != 0, reader

    fresh.run("up", "--no-build", "models")  # in the foreground: it has ended when this returns
    status, log = wait_until_ended(fresh.one("models"), FETCH_SECONDS)
    assert status == 0, log
    # stdout and stderr are two pipes: the last line of a log may be of either
    sums = re.findall(r"(?m)^.*(?:and verified|were there).*$", log)
    assert len(sums) == 2, log
    assert "verified" in sums[1] or sums[1].startswith("0 assets fetched"), log
    assert log.count("smollm2.convert: done in") == 1


def test_without_a_network_the_services_serve_and_name_what_is_missing(
    offline: ContainerSet, models: Path
) -> None:
    offline.up()
    offline.wait_healthy("envoy", *SERVICES)
    picture = (models / "pictures" / "astronaut.png").read_bytes()
    assert FACE_MODEL in face_detection_failure(offline.address, picture)
    with grpc.insecure_channel(offline.address) as channel:
        stub = models_rpc.ModelManagementServiceStub(channel)
        request = models_pb.LoadModelRequest(model_id=CHAT, pipeline_type="text-generation")
        with pytest.raises(grpc.RpcError) as failure:
            stub.LoadModel(request, timeout=60)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    assert CHAT in failure.value.details()

    status, log = wait_until_ended(offline.one("models"), GIVE_UP_SECONDS)
    assert status == 1
    for missing in ("SmolLM2-135M-Instruct", "all-MiniLM-L6-v2", "blaze_face_short_range"):
        assert f"{missing} is missing" in log
    offline.wait_healthy("envoy", *SERVICES)
