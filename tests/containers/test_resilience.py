"""Containers that crash, start, stop and are replaced while calls are in flight."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from ml import (
    common_pb2,
    mediapipe_pb2,
    mediapipe_pb2_grpc,
    transformers_pb2,
    transformers_pb2_grpc,
)
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_rpc
from tests.containers.containers import (
    SERVICES,
    STOP_SECONDS,
    ContainerSet,
    kill_process,
    python,
    started_at,
)
from tests.containers.traffic import CALL_SECONDS, Caller, traffic
from tests.support.stack import CHAT, wait_for

LOAD_SECONDS = 240
# What a caller may see when a process is gone; both mean "try again".
TRY_AGAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
QUESTION = "Tell me about the sea."

# Prints the models that a replica of text_svc has ready; runs inside it.
LIST_MODELS = """
import grpc
from ml.internal import worker_pb2 as pb, worker_pb2_grpc as rpc
with grpc.insecure_channel("127.0.0.1:50062") as channel:
    for model in rpc.ModelWorkerStub(channel).List(pb.ListRequest(), timeout=10).models:
        if model.state == pb.MODEL_STATE_READY:
            print(model.model_id)
"""


@pytest.fixture
def channel(containers: ContainerSet) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(containers.address) as channel:
        yield channel


@pytest.fixture
def chat_model(channel: grpc.Channel) -> Iterator[None]:
    stub = models_rpc.ModelManagementServiceStub(channel)
    request = models_pb.LoadModelRequest(model_id=CHAT, pipeline_type="text-generation")
    assert stub.LoadModel(request, timeout=LOAD_SECONDS).success
    yield
    stub.UnloadModel(models_pb.UnloadModelRequest(model_id=CHAT), timeout=60)


@pytest.fixture
def chat(channel: grpc.Channel, chat_model: None) -> Callable[[], None]:
    """A complete chat."""
    stub = transformers_pb2_grpc.TransformersServiceStub(channel)
    message = transformers_pb2.ChatMessage(role="user", content=QUESTION)
    request = transformers_pb2.ChatRequest(model=CHAT, messages=[message], max_tokens=16)

    def call() -> None:
        assert list(stub.ChatCompletion(request, timeout=CALL_SECONDS))[-1].done

    return call


@pytest.fixture
def watch_faces(channel: grpc.Channel, models: Path) -> Callable[[], None]:
    """A complete short video."""
    stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
    picture = (models / "pictures" / "astronaut.png").read_bytes()
    frames = [
        mediapipe_pb2.VideoFrame(
            frame_data=picture, format="png", timestamp_ms=40 * i, frame_number=i
        )
        for i in range(6)
    ]

    def call() -> None:
        answers = list(stub.StreamFaceDetection(iter(frames), timeout=CALL_SECONDS))
        assert [len(answer.faces) for answer in answers] == [1] * len(frames)

    return call


@pytest.fixture
def two_replicas(containers: ContainerSet) -> Iterator[None]:
    containers.up(scale={"text": 2, "vision": 2})
    for service in ("text", "vision"):
        containers.wait_routed(service, 2)
    yield
    containers.up(scale={"text": 1, "vision": 1})


def ready_models(containers: ContainerSet, replica: int) -> list[str]:
    """The models of one replica of text_svc."""
    code, output = python(containers.of("text")[replica], LIST_MODELS)
    return output.split() if code == 0 else []


def wait_for_model(containers: ContainerSet, replica: int) -> None:
    wait_for(
        f"{CHAT} in replica {replica} of text_svc",
        lambda: CHAT in ready_models(containers, replica),
        LOAD_SECONDS,
    )


def test_a_crashed_service_comes_back_with_its_models(
    containers: ContainerSet, chat: Callable[[], None], watch_faces: Callable[[], None]
) -> None:
    text, envoy = containers.one("text"), containers.one("envoy")
    started, envoy_started = started_at(text), started_at(envoy)
    chat()
    kill_process(text)
    watch_faces()  # the others keep serving
    wait_for("the restart of text_svc", lambda: started_at(text) != started)
    wait_for_model(containers, 0)
    wait_for("a chat", lambda: succeeds(chat))
    assert started_at(envoy) == envoy_started


def test_a_crashed_model_mgmt_remembers_what_is_wanted(
    containers: ContainerSet, chat: Callable[[], None], channel: grpc.Channel
) -> None:
    container = containers.one("model_mgmt")
    started = started_at(container)
    kill_process(container)
    chat()  # a loaded model needs no control plane
    wait_for("the restart of model_mgmt_svc", lambda: started_at(container) != started)
    stub = models_rpc.ModelManagementServiceStub(channel)

    def loaded() -> list[str]:
        with contextlib.suppress(grpc.RpcError):
            answer = stub.GetLoadedModels(common_pb2.EmptyRequest(), timeout=10)
            return [model.model_id for model in answer.models]
        return []

    wait_for("the list of models", lambda: CHAT in loaded())


def succeeds(call: Callable[[], None]) -> bool:
    try:
        call()
    except grpc.RpcError:
        return False
    return True


def check_no_call_is_lost(callers: Sequence[Caller]) -> None:
    for caller in callers:
        caller.wait_for_success()
    assert {outcome for caller in callers for outcome in caller.outcomes} == {grpc.StatusCode.OK}


def test_replicas_come_and_go_under_load(
    containers: ContainerSet, chat: Callable[[], None], watch_faces: Callable[[], None]
) -> None:
    with traffic(chat, watch_faces) as callers:
        for replicas in (2, 1):
            containers.up(scale={"text": replicas, "vision": replicas})
            for service in ("text", "vision"):
                containers.wait_routed(service, replicas)
            if replicas == 2:
                assert CHAT in ready_models(containers, 1)
            check_no_call_is_lost(callers)


@pytest.mark.parametrize("service", SERVICES)
def test_sigterm_loses_no_call(
    containers: ContainerSet,
    chat: Callable[[], None],
    watch_faces: Callable[[], None],
    two_replicas: None,
    service: str,
) -> None:
    replicas = containers.of(service)
    with traffic(chat, watch_faces) as callers:
        for container in replicas:
            container.stop(timeout=STOP_SECONDS)
            container.reload()
            assert container.attrs["State"]["ExitCode"] == 0  # it was not killed
            containers.wait_routed(service, len(replicas) - 1)
            check_no_call_is_lost(callers)
            container.start()
            containers.wait_routed(service, len(replicas))
        check_no_call_is_lost(callers)


def test_sigterm_of_envoy_lets_calls_end(
    containers: ContainerSet, chat: Callable[[], None], watch_faces: Callable[[], None]
) -> None:
    envoy = containers.one("envoy")
    with traffic(chat, watch_faces) as callers:
        for caller in callers:
            caller.finished.set()  # the call in flight is the last one
        envoy.stop(timeout=STOP_SECONDS)
        for caller in callers:
            caller.join(CALL_SECONDS)
    envoy.reload()
    exit_code = envoy.attrs["State"]["ExitCode"]
    envoy.start()
    for service in SERVICES:
        containers.wait_routed(service, 1)
    assert exit_code == 0
    assert {outcome for caller in callers for outcome in caller.outcomes} == {grpc.StatusCode.OK}


def test_envoy_restarts_under_load(
    containers: ContainerSet, chat: Callable[[], None], watch_faces: Callable[[], None]
) -> None:
    services = [*containers.of("text"), *containers.of("vision"), *containers.of("model_mgmt")]
    before = [started_at(container) for container in services]
    envoy = containers.one("envoy")
    with traffic(chat, watch_faces) as callers:
        envoy.restart(timeout=STOP_SECONDS)
        for caller in callers:
            caller.wait_for_success()
    outcomes = {outcome for caller in callers for outcome in caller.outcomes}
    assert outcomes <= {grpc.StatusCode.OK, *TRY_AGAIN}
    assert [started_at(container) for container in services] == before
