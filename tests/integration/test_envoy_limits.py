"""What Envoy refuses for being too much: calls, bytes, metadata."""

from __future__ import annotations

import contextlib
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from ml import mediapipe_pb2_grpc as vision_grpc
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from tests.integration.test_envoy import access_lines
from tests.support.http_calls import post
from tests.support.stack import TEXT, VISION, Stack, list_models, wait_for
from tools.stack.envoy_config import native_config
from tools.stack.ports import Ports


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
