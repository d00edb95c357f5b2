"""Web pages and plain HTTP clients: gRPC-Web, CORS, JSON. Real Envoy, real services."""

from __future__ import annotations

import base64
import http.client
import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest

from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from ml import transformers_pb2 as text_pb
from tests.support.http_calls import post, post_json
from tests.support.stack import CHAT, MODEL_MGMT, TEXT, VISION, Stack

NOWHERE = "nobody/nothing"

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
    """The frames of a ChatCompletion response over gRPC-Web."""
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
    if text:  # base64 in pieces, each with its own padding
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


def preflight(
    front: Stack, origin: str, path: str = f"/{TEXT}/ChatCompletion"
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(front.addresses["envoy"], timeout=30)
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-grpc-web,grpc-timeout",
    }
    connection.request("OPTIONS", path, headers=headers)
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


def test_a_preflight_allows_what_clients_of_openai_and_anthropic_send(front: Stack) -> None:
    answer = preflight(front, "http://localhost:3000", "/v1/messages")
    allowed = answer.headers["access-control-allow-headers"].split(",")
    assert {"authorization", "content-type", "openai-organization", "openai-project"} <= set(
        allowed
    )
    assert {"x-api-key", "anthropic-version", "anthropic-beta"} <= set(allowed)
    assert "anthropic-dangerous-direct-browser-access" in allowed
    facts = ("arch", "lang", "os", "package-version", "runtime", "runtime-version")
    assert {f"x-stainless-{each}" for each in (*facts, "retry-count", "timeout")} <= set(allowed)


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
        content_type="text/plain",  # what a page may send to any origin without asking
        origin=origin,
    )
    assert answer.status == 403


def test_a_foreign_page_is_refused_as_clients_of_http_svc_expect_it(front: Stack) -> None:
    address, origin = front.addresses["envoy"], "https://evil.example"
    status, body = post_json(address, "v1/chat/completions", {}, origin=origin)
    assert (status, body["error"]["code"]) == (403, "permission_denied")
    status, body = post_json(address, "v1/messages?beta=true", {}, origin=origin)
    assert (status, body["type"], body["error"]["type"]) == (403, "error", "permission_error")
    assert body["error"]["message"] == "pages of other origins may not call"


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
