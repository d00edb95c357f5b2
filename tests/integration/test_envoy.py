"""What Envoy routes, refuses and logs."""

from __future__ import annotations

import http.client
import time
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from ml import common_pb2 as common_pb
from ml import mediapipe_pb2, model_management_pb2, transformers_pb2
from ml import model_management_pb2_grpc as models_grpc
from ml import transformers_pb2 as text_pb
from ml import transformers_pb2_grpc as text_grpc
from ml.internal import worker_pb2 as worker_pb
from ml.internal import worker_pb2_grpc as worker_grpc
from stack.envoy_config import native_config
from stack.ports import Ports
from tests.support.stack import CHAT, MODEL_MGMT, SERVICES, TEXT, VISION, Stack, wait_for

CLUSTER_OF = {MODEL_MGMT: "model_mgmt", TEXT: "text", VISION: "vision"}
SERVING = health_pb2.HealthCheckResponse.SERVING
ANY_MODEL_MISSING = text_pb.ChatRequest(model="nobody/nothing", messages=[{"role": "user"}])


@pytest.fixture
def channel(stack: Stack) -> Iterator[grpc.Channel]:
    with stack.channel() as channel:
        yield channel


def get(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Status and body of an HTTP request."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def code_of(channel: grpc.Channel, path: str) -> grpc.StatusCode:
    """The status of a unary call with an empty message."""
    call = channel.unary_unary(path)
    with pytest.raises(grpc.RpcError) as failure:
        call(b"")
    code = failure.value.code()
    assert isinstance(code, grpc.StatusCode)
    return code


def routes() -> dict[str, dict[str, Any]]:
    """Path to route of the listener for clients."""
    listener = native_config(Ports())["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][-1]["typed_config"]
    hosts = manager["route_config"]["virtual_hosts"]
    return {route["match"].get("path", "*"): route for route in hosts[0]["routes"]}


@pytest.mark.parametrize(
    "service",
    [
        model_management_pb2.DESCRIPTOR.services_by_name["ModelManagementService"],
        transformers_pb2.DESCRIPTOR.services_by_name["TransformersService"],
        mediapipe_pb2.DESCRIPTOR.services_by_name["MediapipeService"],
    ],
    ids=lambda service: service.name,
)
def test_every_rpc_has_a_route_of_its_kind(service: Any) -> None:
    described = descriptor_pb2.ServiceDescriptorProto()
    service.CopyToProto(described)
    for method in described.method:
        route = routes()[f"/{service.full_name}/{method.name}"]["route"]
        assert route["cluster"] == f"{CLUSTER_OF[service.full_name]}_or_wait"
        assert route["timeout"] == "0s"
        streams = method.client_streaming or method.server_streaming
        capped = "max_stream_duration" in route["max_stream_duration"]
        # A load may take any time; the clients set no deadline.
        assert capped is not (streams or method.name == "LoadModel"), method.name
        # A stream of frames is not sent to another replica, but waits for one that is down.
        retries = 1 if method.client_streaming else 2
        assert route["retry_policy"]["num_retries"] == retries, method.name
        only_unsent = route["retry_policy"]["retry_on"] == "connect-failure"
        assert only_unsent is method.client_streaming, method.name


def test_only_known_services_are_routed() -> None:
    prefixes = {path.rpartition("/")[0] for path in routes()}
    assert prefixes == {
        "",
        *(f"/{name}" for name in SERVICES),
        "/grpc.health.v1.Health",
        "/grpc.reflection.v1.ServerReflection",
        "/grpc.reflection.v1alpha.ServerReflection",
    }


@pytest.mark.parametrize(
    "path",
    [
        "/ml.TransformersService/Unheard",
        "/ml.TransformersService/GenerateTextAndMore",
        "/ml.Unheard/Of",
        "/ml.internal.ModelWorker/Load",
        "/ml.internal.ModelWorker/Unload",
    ],
)
def test_an_unknown_rpc_is_unimplemented(channel: grpc.Channel, path: str) -> None:
    assert code_of(channel, path) is grpc.StatusCode.UNIMPLEMENTED


def test_the_internal_service_is_there_but_not_behind_envoy(
    stack: Stack, channel: grpc.Channel
) -> None:
    with stack.channel("text") as inside:
        assert worker_grpc.ModelWorkerStub(inside).List(worker_pb.ListRequest()) is not None
    path = "/ml.internal.ModelWorker/List"
    assert code_of(channel, path) is grpc.StatusCode.UNIMPLEMENTED


def test_an_unknown_page_is_404(stack: Stack) -> None:
    assert get(stack.addresses["envoy"], "/nothing")[0] == 404


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_of_every_service(channel: grpc.Channel, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert stub.Check(request).status == SERVING
    watch = stub.Watch(request)
    assert next(watch).status == SERVING
    watch.cancel()


def test_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="ml.No"))
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_every_service(channel: grpc.Channel, version: str) -> None:
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        *(reflection_pb2.ServerReflectionRequest(file_containing_symbol=s) for s in SERVICES),
    ]
    listed, *files = ask(iter(requests))
    assert set(SERVICES) <= {s.name for s in listed.list_services_response.service}
    for service, answer in zip(SERVICES, files, strict=True):
        described = [
            f"{file.package}.{one.name}"
            for text in answer.file_descriptor_response.file_descriptor_proto
            for file in [descriptor_pb2.FileDescriptorProto.FromString(text)]
            for one in file.service
        ]
        assert service in described


def access_lines(stack: Stack, request_id: str) -> list[dict[str, Any]]:
    """Lines of the access log with this request id."""
    return [line for line in stack.access_log() if line.get("request_id") == request_id]


def test_the_access_log_is_json_with_the_caller_s_request_id(
    stack: Stack, channel: grpc.Channel
) -> None:
    request_id = f"test-{uuid.uuid4()}"
    stub = models_grpc.ModelManagementServiceStub(channel)
    stub.GetLoadedModels(common_pb.EmptyRequest(), metadata=[("x-request-id", request_id)])
    (line,) = wait_for("a line of the access log", lambda: access_lines(stack, request_id))
    assert line["path"] == f"/{MODEL_MGMT}/GetLoadedModels"
    assert line["grpc_code"] == "0"
    assert line["upstream"] == stack.addresses["model_mgmt"]


def test_the_access_log_has_the_status_of_a_failure(stack: Stack, channel: grpc.Channel) -> None:
    request_id = f"test-{uuid.uuid4()}"
    with pytest.raises(grpc.RpcError) as failure:
        list(
            text_grpc.TransformersServiceStub(channel).ChatCompletion(
                ANY_MODEL_MISSING, metadata=[("x-request-id", request_id)]
            )
        )
    (line,) = wait_for("a line of the access log", lambda: access_lines(stack, request_id))
    assert line["grpc_code"] == str(failure.value.code().value[0])


def test_of_calls_that_succeed_the_access_log_can_have_a_share(
    stack: Stack, channel: grpc.Channel
) -> None:
    stub, name = models_grpc.ModelManagementServiceStub(channel), uuid.uuid4()
    admin = stack.addresses["envoy_admin"]

    def share(percent: int) -> None:
        assert get(admin, f"/runtime_modify?ml.logged_calls={percent}", "POST")[0] == 200

    def named(number: int) -> list[tuple[str, str]]:
        return [("x-request-id", f"test-{name}-{number}")]

    share(0)
    try:
        stub.GetLoadedModels(common_pb.EmptyRequest(), metadata=named(1))
        with pytest.raises(grpc.RpcError):
            list(
                text_grpc.TransformersServiceStub(channel).ChatCompletion(
                    ANY_MODEL_MISSING, metadata=named(2)
                )
            )
        for number, path in ((4, "/v1/models"), (5, "/v1/models/no/no")):
            get(stack.addresses["envoy"], path, **dict(named(number)))
    finally:
        share(100)
    stub.GetLoadedModels(common_pb.EmptyRequest(), metadata=named(3))
    for number in (2, 3, 5):
        wait_for("a line", lambda number=number: access_lines(stack, f"test-{name}-{number}"))
    for number in (1, 4):
        assert not access_lines(stack, f"test-{name}-{number}")


def test_metadata_ask_for_a_greedy_answer(channel: grpc.Channel) -> None:
    """As a client must whose proto has a plain float: it cannot send a temperature of 0."""
    models = models_grpc.ModelManagementServiceStub(channel)
    models.LoadModel(model_management_pb2.LoadModelRequest(model_id=CHAT))
    stub = text_grpc.TransformersServiceStub(channel)

    def answer(*metadata: tuple[str, str], **fields: float) -> str:
        request = text_pb.TextRequest(model=CHAT, prompt="Snow is", max_length=12, **fields)  # type: ignore[arg-type]
        return "".join(each.text for each in stub.GenerateText(request, metadata=metadata))

    greedy = answer(temperature=0)
    assert answer(("greedy", "true")) == answer(("greedy", "true"), temperature=2) == greedy
    assert answer(temperature=2) != greedy


def test_models_are_watched_while_they_answer(channel: grpc.Channel) -> None:
    models = models_grpc.ModelManagementServiceStub(channel)
    models.LoadModel(model_management_pb2.LoadModelRequest(model_id=CHAT))
    watch = models.WatchModels(model_management_pb2.WatchModelsRequest(), timeout=120)

    def chat_model() -> model_management_pb2.ModelStatus:
        """The model, as the watch says next."""
        return next(each for news in watch for each in news.models if each.model_id == CHAT)

    assert chat_model().state == model_management_pb2.MODEL_STATE_READY
    call = text_grpc.TransformersServiceStub(channel).GenerateText(
        text_pb.TextRequest(model=CHAT, prompt="One, two,", max_length=4000)
    )
    next(iter(call))
    while not (busy := chat_model()).calls_in_flight:
        pass
    call.cancel()
    while (idle := chat_model()).calls_in_flight:
        pass
    assert idle.last_used_at > busy.last_used_at > time.time() - 3600
    watch.cancel()


def test_a_stream_dropped_after_its_last_message_is_no_failure(
    stack: Stack, channel: grpc.Channel
) -> None:
    """The application stops reading at `done` and never sees the trailers."""
    models = models_grpc.ModelManagementServiceStub(channel)
    models.LoadModel(model_management_pb2.LoadModelRequest(model_id=CHAT))
    request_id = f"test-{uuid.uuid4()}"
    call = text_grpc.TransformersServiceStub(channel).GenerateText(
        text_pb.TextRequest(model=CHAT, prompt="One, two,", max_length=4),
        metadata=[("x-request-id", request_id)],
    )
    for message in call:
        if message.done:
            call.cancel()
            break
    (line,) = wait_for("a line of the access log", lambda: access_lines(stack, request_id))
    # "0" when the trailers were faster than the caller.
    assert line["grpc_code"] in (None, "0")


def test_only_two_pages_of_the_admin_are_reachable(stack: Stack, channel: grpc.Channel) -> None:
    models_grpc.ModelManagementServiceStub(channel).GetLoadedModels(common_pb.EmptyRequest())
    address = stack.addresses["envoy_metrics"]
    status, page = get(address, "/stats/prometheus")
    assert status == 200
    # The labels that dashboards select by.
    assert 'envoy_grpc_bridge_method="GetLoadedModels"' in page
    assert 'grpc_status="0"' in page
    assert get(address, "/ready") == (200, "LIVE\n")
    for path in ("/", "/stats", "/config_dump", "/clusters", "/stats/prometheus/../../config_dump"):
        assert get(address, path)[0] == 404, path
    for path in ("/quitquitquit", "/drain_listeners", "/stats/prometheus"):
        assert get(address, path, method="POST")[0] == 404, path


def test_grpc_web_is_served(stack: Stack) -> None:
    connection = http.client.HTTPConnection(stack.addresses["envoy"], timeout=30)
    connection.request(
        "POST",
        f"/{MODEL_MGMT}/GetLoadedModels",
        body=b"\0\0\0\0\0",  # one frame: no flags, no bytes
        headers={"content-type": "application/grpc-web+proto", "origin": "http://localhost:3000"},
    )
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert b"grpc-status:0" in body


@pytest.mark.parametrize(
    ("origin", "allowed"), [("http://localhost:3000", True), ("https://evil.example", False)]
)
def test_browsers_of_this_machine_alone_may_ask(stack: Stack, origin: str, allowed: bool) -> None:
    connection = http.client.HTTPConnection(stack.addresses["envoy"], timeout=30)
    headers = {"origin": origin, "access-control-request-method": "POST"}
    connection.request("OPTIONS", f"/{MODEL_MGMT}/GetLoadedModels", headers=headers)
    answer = connection.getresponse()
    connection.close()
    assert (answer.headers["access-control-allow-origin"] == origin) is allowed


def test_a_large_message_passes(channel: grpc.Channel) -> None:
    """Far over Envoy's buffers, and over the 4 MiB that clients accept by default."""
    request = text_pb.ChatRequest(
        model="nobody/nothing", messages=[{"role": "user", "content": "x" * (16 << 20)}]
    )
    with pytest.raises(grpc.RpcError) as failure:
        list(text_grpc.TransformersServiceStub(channel).ChatCompletion(request))
    # It arrived: the service itself refuses it.
    assert failure.value.code() in (
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    assert "upstream" not in (failure.value.details() or "")
