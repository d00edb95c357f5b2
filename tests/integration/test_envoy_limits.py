"""What Envoy refuses as too much: calls, bytes, metadata, connections."""

from __future__ import annotations

import contextlib
import http.client
import socket
import urllib.request
import uuid
from pathlib import Path

import grpc
import pytest

from ml import common_pb2 as common_pb
from ml import mediapipe_pb2_grpc as vision_grpc
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from stack.envoy import Admin
from stack.envoy_config import native_config
from stack.ports import Ports
from tests.integration.test_envoy import access_lines
from tests.support.http2 import PING, RawConnection
from tests.support.http_calls import post
from tests.support.own_envoy import Start, manager_of, nobody_connected, wait_for_upstream
from tests.support.stack import MODEL_MGMT, TEXT, VISION, Stack, list_models, open_channel, wait_for


def test_every_rpc_has_a_rate_limit() -> None:
    listener = native_config(Ports())["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][-1]["typed_config"]
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        if "path" in route["match"]:
            limit = route["typed_per_filter_config"]["envoy.filters.http.local_ratelimit"]
            assert limit["token_bucket"]["max_tokens"] >= limit["token_bucket"]["tokens_per_fill"]


def test_the_messages_of_limits_name_them() -> None:
    """Envoy's texts are fixed, so they repeat the numbers of its configuration."""
    manager = manager_of(native_config(Ports()))
    filters = {each["name"]: each["typed_config"] for each in manager["http_filters"]}
    json_calls = filters["json_calls_limit"]["extension_config"]["typed_config"]
    most = json_calls["gradient_controller_config"]["concurrency_limit_params"]
    assert most["min_concurrency_limit"] == most["max_concurrency_limit"]
    (caller,) = filters["caller_ratelimit"]["descriptors"]
    texts = [
        str(mapper["body_format_override"]) for mapper in manager["local_reply_config"]["mappers"]
    ]
    limit = f"a caller may make {caller['token_bucket']['max_tokens']} calls in a second"
    assert len([text for text in texts if limit in text]) == 3  # as text, and in two APIs' forms
    wanted = (
        f"within {manager['request_timeout'].removesuffix('s')} s",
        f"{most['max_concurrency_limit']} JSON calls are running",
    )
    for words in wanted:
        assert [text for text in texts if words in text], words


def test_a_json_body_over_4_mib_is_413(front: Stack) -> None:
    body = b'{"model": "nobody/nothing", "texts": ["' + b"x" * (4 << 20) + b'"]}'
    request_id = f"test-{uuid.uuid4()}"
    # Refused before all of it is sent: the response may be lost with the connection.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        rpc, name = f"{TEXT}/GenerateEmbeddings", {"x-request-id": request_id}
        answer, _ = post(front.addresses["envoy"], rpc, body, **name)
        assert answer.status == 413
    (line,) = wait_for("a line of the access log", lambda: access_lines(front, request_id))
    assert line["http_code"] == 413
    assert line["upstream"] is None


def test_an_oversized_message_is_resource_exhausted(front: Stack) -> None:
    """Envoy forwards it in pieces; the service refuses it because of its length."""
    message = models_pb.ModelFileRequest(model_id="x" * (65 << 20)).SerializeToString()
    sizes = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(front.addresses["envoy"], sizes) as channel:
        call = channel.unary_unary(f"/{VISION}/DetectFaces")
        with pytest.raises(grpc.RpcError) as failure:
            call(message, timeout=120)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_oversized_metadata_is_refused_and_the_connection_lives(front: Stack) -> None:
    with front.channel() as channel:
        stub = vision_grpc.MediapipeServiceStub(channel)
        with pytest.raises(grpc.RpcError):
            list(stub.StreamFaceDetection(iter(()), metadata=[("x-large", "x" * (70 << 10))]))
        assert list_models(channel) is grpc.StatusCode.OK


def test_too_many_calls_are_resource_exhausted_and_other_rpcs_go_on(
    stack: Stack, start: Start, envoy_ports: Ports, tmp_path: Path
) -> None:
    config = native_config(envoy_ports, generated=tmp_path)
    listener = config["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][-1]["typed_config"]
    routes = {one.get("name"): one for one in manager["route_config"]["virtual_hosts"][0]["routes"]}
    (limit,) = routes["UnloadModel"]["typed_per_filter_config"].values()
    # A bucket that is not refilled, so that no machine is too slow to empty it.
    limit["token_bucket"] = {"max_tokens": 3, "tokens_per_fill": 1, "fill_interval": "3600s"}
    start(config)
    wait_for_upstream(Admin(envoy_ports.envoy_admin))
    answers = []
    with open_channel(f"127.0.0.1:{envoy_ports.envoy}") as channel:
        stub = models_grpc.ModelManagementServiceStub(channel)
        for _ in range(4):
            with pytest.raises(grpc.RpcError) as failure:
                stub.UnloadModel(models_pb.UnloadModelRequest(), timeout=60)
            answers.append((failure.value.code(), failure.value.details()))
        assert list_models(channel) is grpc.StatusCode.OK
    assert [code for code, _ in answers[:3]] == [grpc.StatusCode.INVALID_ARGUMENT] * 3
    assert answers[3] == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "too many calls of UnloadModel at once: try again in a second",
    )


def test_a_caller_over_its_rate_is_refused_and_others_are_served(
    stack: Stack, start: Start, envoy_ports: Ports, tmp_path: Path
) -> None:
    config = native_config(envoy_ports, generated=tmp_path)
    listener = config["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][-1]["typed_config"]
    (limit,) = (
        one["typed_config"] for one in manager["http_filters"] if one["name"] == "caller_ratelimit"
    )
    rate = limit["descriptors"][0]["token_bucket"]
    (words,) = (
        source["inline_string"]
        for mapper in manager["local_reply_config"]["mappers"]
        if mapper.get("status_code") == 429
        and (source := mapper["body_format_override"].get("text_format_source"))
    )
    assert f"{rate['max_tokens']} calls in a second" in words
    rate |= {"max_tokens": 3, "tokens_per_fill": 1, "fill_interval": "3600s"}
    start(config)
    wait_for_upstream(Admin(envoy_ports.envoy_admin))
    rpc = f"{MODEL_MGMT}/GetLoadedModels"
    with open_channel(f"127.0.0.1:{envoy_ports.envoy}") as channel:
        stub = models_grpc.ModelManagementServiceStub(channel)
        for _ in range(3):
            stub.GetLoadedModels(common_pb.EmptyRequest(), timeout=60)
        with pytest.raises(grpc.RpcError) as failure:
            stub.GetLoadedModels(common_pb.EmptyRequest(), timeout=60)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.value.details() == words
    answer, body = post(f"127.0.0.1:{envoy_ports.envoy}", rpc, b"{}")
    assert (answer.status, body.decode()) == (429, words)
    # Another address is another caller.
    other = http.client.HTTPConnection(
        "127.0.0.1", envoy_ports.envoy, timeout=60, source_address=("127.0.0.2", 0)
    )
    with contextlib.closing(other):
        other.request("POST", f"/{rpc}", b"{}", {"content-type": "application/json"})
        assert other.getresponse().status == 200


def test_quiet_connections_are_pinged(
    stack: Stack, start: Start, envoy_ports: Ports, tmp_path: Path
) -> None:
    """So that no proxy or NAT between here and a camera forgets them, which many do in a minute."""
    config = native_config(envoy_ports, generated=tmp_path)
    keepalive = manager_of(config)["http2_protocol_options"]["connection_keepalive"]
    assert float(keepalive["interval"].removesuffix("s")) <= 30
    keepalive["interval"] = "0.5s"
    start(config)
    with RawConnection(f"127.0.0.1:{envoy_ports.envoy}") as connection:
        connection.open_call(1, "/ml.MediapipeService/StreamFaceDetection")
        assert any(frame.kind == PING for frame in connection.frames())


def test_connections_over_the_limit_are_closed(
    stack: Stack, start: Start, envoy_ports: Ports, tmp_path: Path
) -> None:
    config = native_config(envoy_ports, generated=tmp_path)
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
            client.sendall(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
            return client.recv(1024)
        return b""

    with contextlib.ExitStack() as opened:
        address = ("127.0.0.1", envoy_ports.envoy)
        # The check whether the port accepts was a connection too.
        wait_for("the end of all connections", lambda: nobody_connected(admin))
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
    config = native_config(envoy_ports, generated=tmp_path)
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
