"""Ids and other text of a caller are cut and cleaned before they are logged or answered."""

from __future__ import annotations

import http.client
import json
from typing import Any

import grpc
import pytest

from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from shared.text import MAX_ID_CHARACTERS
from tests.support.attack import Attacks
from tests.support.stack import MODEL_MGMT, Stack, wait_for

REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
RPC = f"/{MODEL_MGMT}/GetLoadedModels"


def lines(stack: Stack, name: str, request_id: str) -> list[dict[str, Any]]:
    """The lines of a log with a request id, each of which is valid JSON."""
    text = (stack.logs / f"{name}.log").read_text(errors="replace")
    found = [json.loads(line) for line in text.splitlines() if request_id in line]
    return [line for line in found if line.get("request_id") == request_id]


def answered_id(stack: Stack, request_id: bytes, path: str = RPC) -> str | None:
    """The id in the response to a call with this one."""
    connection = http.client.HTTPConnection(stack.addresses["envoy"], timeout=60)
    try:
        connection.putrequest("POST", path)
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", "2")
        connection.putheader("x-request-id", request_id)  # type: ignore[arg-type]
        connection.endheaders(b"{}")
        return connection.getresponse().headers["x-request-id"]
    finally:
        connection.close()


def test_request_ids_are_cut_and_cleaned(stack: Stack, attack: Attacks) -> None:
    """A request id has at most 128 printable characters, in every log and in the answer."""
    with attack("19 request ids", stack) as seen:
        for number in range(20):
            begin = f"long-{number}-"
            short = begin + "x" * (MAX_ID_CHARACTERS - len(begin))
            assert answered_id(stack, (begin + "x" * 50_000).encode()) == short
        assert answered_id(stack, b"bad\xff\xfe\x80 id\xc3\xa9") == "badid"
        assert answered_id(stack, b"nowhere\xff" + b"y" * 500, "/none") == "nowhere" + "y" * 120
        # Nothing remains of it: the call gets an id of its own.
        fresh = answered_id(stack, b"\xff\xfe")
        assert fresh
        assert fresh.isascii()
        assert fresh.isprintable()
        for name in ("envoy", "model_mgmt_svc"):
            for request_id in (short, "badid", fresh):
                wait_for(f"a line of {name}", lambda: lines(stack, name, request_id))  # noqa: B023
        seen.say(f"ids of 50,000 characters are logged and answered with {MAX_ID_CHARACTERS}")


def test_long_texts_of_callers_are_cut_in_logs_and_errors(stack: Stack, attack: Attacks) -> None:
    """What a caller writes into paths, names and options fills neither logs nor a response."""
    with attack("19 long texts", stack) as seen:
        before = sum(log.stat().st_size for log in stack.logs.glob("*.log"))
        with stack.channel() as channel:
            stub = models_grpc.ModelManagementServiceStub(channel)
            for request in (
                models_pb.LoadModelRequest(model_id="m" * 10_000_000),
                models_pb.LoadModelRequest(model_id="a/b", pipeline_type="p" * 1_000_000),
                models_pb.LoadModelRequest(
                    model_id="a/b", pipeline_type="chat", options={"o" * 1_000_000: "1"}
                ),
                models_pb.LoadModelRequest(
                    model_id="a/b", pipeline_type="chat", options={"dtype": "v" * 1_000_000}
                ),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    stub.LoadModel(request, timeout=60)
                # There is no such model either, if that is looked at first.
                assert refused.value.code() in REFUSALS
                assert len(refused.value.details()) < 5000
            for _ in range(5):
                with pytest.raises(grpc.RpcError) as unknown:
                    channel.unary_unary("/" + "p" * 30_000)(b"", timeout=60)
                assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
        wait_for(
            "the access log",
            lambda: (
                sum(str(line.get("path")).startswith("/ppp") for line in stack.access_log()) == 5
            ),
        )
        grown = sum(log.stat().st_size for log in stack.logs.glob("*.log")) - before
        assert grown < 200_000
        assert all(len(str(line.get("path"))) <= 256 for line in stack.access_log())
        seen.say("long names are cut in errors and logs")
