"""What the front door offers beside plain gRPC, and what it refuses: real Envoy, real services."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import ssl
import uuid
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from ml import common_pb2 as common_pb
from ml import mediapipe_pb2_grpc as vision_grpc
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from ml import transformers_pb2 as text_pb
from tests.integration.test_envoy import access_lines
from tests.support.stack import CHAT, MODEL_MGMT, TEXT, VISION, Stack, stack_in, wait_for
from tools.dev_certs import make_certificates
from tools.stack.envoy_config import native_config
from tools.stack.ports import Ports

NOWHERE = "nobody/nothing"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def front(
    models: Path, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A stack with all listeners."""
    with stack_in(tmp_path_factory.mktemp("front"), "--tls", str(certificates)) as running:
        running.wait_serving()
        yield running


def post(
    address: str, rpc: str, body: bytes, *, content_type: str = "application/json", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """The answer to an HTTP/1.1 POST, and its body."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", f"/{rpc}", body, {"content-type": content_type, **headers})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def post_json(address: str, rpc: str, message: Any, **headers: str) -> tuple[int, Any]:
    """Status and message of a call as JSON."""
    answer, body = post(address, rpc, json.dumps(message).encode(), **headers)
    assert answer.headers["content-type"] == "application/json"
    return answer.status, json.loads(body)


# gRPC-Web


def frames_of(body: bytes) -> list[tuple[int, bytes]]:
    """Flags and bytes of each frame of a gRPC-Web body; flag 128 is the trailers."""
    frames = []
    while body:
        length = int.from_bytes(body[1:5])
        frames.append((body[0], body[5 : 5 + length]))
        body = body[5 + length :]
    return frames


def web_call(front: Stack, message: bytes, *, text: bool) -> list[tuple[int, bytes]]:
    """The frames that answer a ChatCompletion over gRPC-Web."""
    kind = "application/grpc-web-text+proto" if text else "application/grpc-web+proto"
    request = b"\0" + len(message).to_bytes(4) + message
    answer, body = post(
        front.addresses["envoy"],
        f"{TEXT}/ChatCompletion",
        base64.b64encode(request) if text else request,
        content_type=kind,
        accept=kind,
        origin="http://localhost:3000",
        **{"x-grpc-web": "1"},
    )
    assert answer.status == 200
    assert answer.headers["content-type"].startswith(kind)
    assert "grpc-status" in answer.headers["access-control-expose-headers"]
    if text:  # base64 piece by piece, each with padding of its own
        body = b"".join(map(base64.b64decode, re.findall(rb"[^=]+=*", body)))
    return frames_of(body)


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_a_page_chats_over_grpc_web(front: Stack, text: bool) -> None:
    with front.channel() as channel:
        models_grpc.ModelManagementServiceStub(channel).LoadModel(
            models_pb.LoadModelRequest(model_id=CHAT, pipeline_type="chat")
        )
    request = text_pb.ChatRequest(
        model=CHAT, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
    )
    *messages, (flags, trailers) = web_call(front, request.SerializeToString(), text=text)
    answers = [text_pb.ChatResponse.FromString(data) for _, data in messages]
    assert "".join(answer.content for answer in answers)
    assert [answer.done for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert flags == 128
    assert b"grpc-status:0" in trailers


def test_an_error_over_grpc_web_has_its_code(front: Stack) -> None:
    request = text_pb.ChatRequest(model=NOWHERE, messages=[{"role": "user"}])
    answer, _ = post(
        front.addresses["envoy"],
        f"{TEXT}/ChatCompletion",
        b"\0" + request.ByteSize().to_bytes(4) + request.SerializeToString(),
        content_type="application/grpc-web+proto",
    )
    assert answer.headers["grpc-status"] == str(grpc.StatusCode.FAILED_PRECONDITION.value[0])


# CORS


def preflight(front: Stack, origin: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(front.addresses["envoy"], timeout=30)
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-grpc-web,grpc-timeout",
    }
    connection.request("OPTIONS", f"/{TEXT}/ChatCompletion", headers=headers)
    answer = connection.getresponse()
    connection.close()
    return answer


def test_a_preflight_allows_what_grpc_web_sends(front: Stack) -> None:
    answer = preflight(front, "http://127.0.0.1:8080")
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "http://127.0.0.1:8080"
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].split(",")
    assert {"content-type", "x-grpc-web", "grpc-timeout"} <= set(allowed)


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example:50051",
    ],
)
def test_a_foreign_page_is_refused_even_without_a_preflight(front: Stack, origin: str) -> None:
    assert "access-control-allow-origin" not in preflight(front, origin).headers
    answer, _ = post(
        front.addresses["envoy"],
        f"{MODEL_MGMT}/UnloadModel",
        b'{"model_id": "nobody/nothing"}',
        content_type="text/plain",  # what a page may send anywhere without asking
        origin=origin,
    )
    assert answer.status == 403


# JSON


def test_json_in_json_out(front: Stack) -> None:
    status, answer = post_json(front.addresses["envoy"], f"{MODEL_MGMT}/GetLoadedModels", {})
    assert status == 200
    assert isinstance(answer["models"], list)


def test_a_picture_as_json(front: Stack, models: Path) -> None:
    picture = (models / "pictures" / "astronaut.png").read_bytes()
    message = {"image_data": base64.b64encode(picture).decode(), "format": "png"}
    status, answer = post_json(front.addresses["envoy"], f"{VISION}/DetectFaces", message)
    assert status == 200
    (face,) = answer["faces"]
    assert 0 < face["x"] < 1
    assert face["confidence"] > 0.5


def test_a_stream_as_json_is_a_line_a_message(front: Stack) -> None:
    with front.channel() as channel:
        models_grpc.ModelManagementServiceStub(channel).LoadModel(
            models_pb.LoadModelRequest(model_id=CHAT, pipeline_type="chat")
        )
    message = {"model": CHAT, "prompt": "One, two,", "max_length": 4}
    answer, body = post(
        front.addresses["envoy"], f"{TEXT}/GenerateText", json.dumps(message).encode()
    )
    assert answer.status == 200
    lines = [json.loads(line) for line in body.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["tokens_generated"] == 4


@pytest.mark.parametrize(
    ("rpc", "message", "http_status", "code", "reason"),
    [
        (f"{MODEL_MGMT}/LoadModel", {}, 400, "INVALID_ARGUMENT", "MISSING_FIELD"),
        (
            f"{TEXT}/GenerateEmbeddings",
            {"model": NOWHERE, "texts": ["x"]},
            400,
            "FAILED_PRECONDITION",
            "MODEL_NOT_LOADED",
        ),
        (
            f"{MODEL_MGMT}/GetModelFile",
            {"model_id": NOWHERE, "file_path": "config.json"},
            404,
            "NOT_FOUND",
            "",
        ),
    ],
)
def test_an_error_as_json_is_its_status(
    front: Stack, rpc: str, message: Any, http_status: int, code: str, reason: str
) -> None:
    status, answer = post_json(front.addresses["envoy"], rpc, message)
    assert status == http_status
    assert answer["code"] == getattr(grpc.StatusCode, code).value[0]
    assert answer["message"]
    info = next(one for one in answer["details"] if one["@type"].endswith("google.rpc.ErrorInfo"))
    assert not reason or info["reason"] == reason


@pytest.mark.parametrize("body", [b"{", b'{"no_such_field": 1}', b'{"texts": 1}'])
def test_bad_json_is_400(front: Stack, body: bytes) -> None:
    answer, _ = post(front.addresses["envoy"], f"{TEXT}/GenerateEmbeddings", body)
    assert answer.status == 400


@pytest.mark.parametrize("rpc", ["ml.internal.ModelWorker/List", f"{TEXT}/Unheard"])
def test_json_reaches_no_other_rpc(front: Stack, rpc: str) -> None:
    answer, _ = post(front.addresses["envoy"], rpc, b"{}")
    assert answer.status == 404


# TLS


def secure_channel(front: Stack, name: str, folder: Path, *, client: str = "") -> grpc.Channel:
    """A channel that trusts the authority of `folder`, and shows `client`'s certificate."""
    files = {"root_certificates": (folder / "ca.pem").read_bytes()}
    if client:
        files["private_key"] = (folder / f"{client}.key").read_bytes()
        files["certificate_chain"] = (folder / f"{client}.pem").read_bytes()
    # A pool shared with other tests would share their connections too.
    pool = [("grpc.use_local_subchannel_pool", 1)]
    address = front.addresses[name].replace("127.0.0.1", "localhost")
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(**files), pool)


def list_models(channel: grpc.Channel) -> grpc.StatusCode:
    """The status of a GetLoadedModels."""
    stub = models_grpc.ModelManagementServiceStub(channel)
    try:
        stub.GetLoadedModels(common_pb.EmptyRequest(), timeout=30)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_tls_serves_who_trusts_it(front: Stack, certificates: Path) -> None:
    with secure_channel(front, "envoy_tls", certificates) as channel:
        assert list_models(channel) is grpc.StatusCode.OK


def test_mtls_serves_a_client_with_a_certificate(front: Stack, certificates: Path) -> None:
    with secure_channel(front, "envoy_mtls", certificates, client="client") as channel:
        assert list_models(channel) is grpc.StatusCode.OK


def test_mtls_refuses_a_client_without_a_certificate(front: Stack, certificates: Path) -> None:
    with secure_channel(front, "envoy_mtls", certificates) as channel:
        assert list_models(channel) is grpc.StatusCode.UNAVAILABLE
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    host, port = front.addresses["envoy_mtls"].split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=30)
    # TLS 1.3 tells the client after its handshake.
    with pytest.raises((ssl.SSLError, ConnectionError), match=r"(?i)certificate|reset"):
        connection.request("GET", "/")
        connection.getresponse()
    connection.close()


def test_mtls_refuses_a_certificate_of_another_authority(
    front: Stack, certificates: Path, tmp_path: Path
) -> None:
    make_certificates(tmp_path)
    (tmp_path / "ca.pem").write_bytes((certificates / "ca.pem").read_bytes())
    with secure_channel(front, "envoy_mtls", tmp_path, client="client") as channel:
        assert list_models(channel) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("name", ["envoy_tls", "envoy_mtls"])
def test_plain_text_is_refused_on_the_tls_ports(front: Stack, name: str) -> None:
    with front.channel(name) as channel:
        assert list_models(channel) is grpc.StatusCode.UNAVAILABLE


def test_old_tls_is_refused(front: Stack, certificates: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):  # Python does not like them either
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    host, port = front.addresses["envoy_tls"].split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=30)
    with pytest.raises(ssl.SSLError):
        connection.connect()


# Limits


def test_every_rpc_has_a_rate_limit() -> None:
    listener = native_config(Ports())["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        if "path" in route["match"]:
            limit = route["typed_per_filter_config"]["envoy.filters.http.local_ratelimit"]
            assert limit["token_bucket"]["max_tokens"] >= limit["token_bucket"]["tokens_per_fill"]


def test_too_many_calls_are_resource_exhausted_and_other_rpcs_go_on(front: Stack) -> None:
    listener = native_config(Ports())["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    routes = {r.get("name"): r for r in manager["route_config"]["virtual_hosts"][0]["routes"]}
    limits = routes["UnloadModel"]["typed_per_filter_config"].values()
    (burst,) = (limit["token_bucket"]["max_tokens"] for limit in limits)

    def unload(_: int) -> tuple[grpc.StatusCode, str]:
        try:
            stub.UnloadModel(models_pb.UnloadModelRequest(), timeout=60)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        raise AssertionError("an empty model id was accepted")

    with front.channel() as channel, ThreadPoolExecutor(16) as threads:
        stub = models_grpc.ModelManagementServiceStub(channel)
        answers: set[tuple[grpc.StatusCode, str]] = set()
        refused = (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "too many calls of UnloadModel at once: try again in a second",
        )
        # The bucket fills while it is emptied, so how many it takes is not known exactly.
        for _ in range(20):
            answers |= set(threads.map(unload, range(burst)))
            if refused in answers:
                break
        assert refused in answers
        assert {code for code, _ in answers} == {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }
        assert list_models(channel) is grpc.StatusCode.OK


def test_a_json_body_over_16_mib_is_413(front: Stack) -> None:
    body = b'{"model": "nobody/nothing", "texts": ["' + b"x" * (17 << 20) + b'"]}'
    request_id = f"test-{uuid.uuid4()}"
    # Refused before all of it is sent: the answer may be lost with the connection.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        rpc, name = f"{TEXT}/GenerateEmbeddings", {"x-request-id": request_id}
        answer, _ = post(front.addresses["envoy"], rpc, body, **name)
        assert answer.status == 413
    (line,) = wait_for("a line of the access log", lambda: access_lines(front, request_id))
    assert line["http_code"] == 413
    assert line["upstream"] is None


def test_an_oversized_message_is_resource_exhausted(front: Stack) -> None:
    """Envoy passes it on piece by piece; the service refuses it by its length."""
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
