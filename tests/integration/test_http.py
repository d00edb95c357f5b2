"""http_svc behind Envoy: what Envoy adds to it, and what it does for it."""

from __future__ import annotations

import http.client
import json
from typing import Any

from tests.support.stack import Stack

NOWHERE = "nobody/nothing"


def ask(front: Stack, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    connection = http.client.HTTPConnection(front.addresses["envoy"], timeout=120)
    try:
        data = json.dumps(body) if body is not None else None
        connection.request(method, path, data, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_the_paths_of_http_svc_are_on_envoys_port(stack: Stack) -> None:
    status, body = ask(stack, "GET", "/v1/models?x=y")
    assert (status, body["object"]) == (200, "list")
    status, body = ask(stack, "GET", "/v1/models/nobody/nothing")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    status, body = ask(stack, "POST", "/v1/nothing", {})
    assert (status, body["error"]["code"]) == (404, "not_found")


def test_its_bodies_are_not_limited_as_json_for_grpc_is(stack: Stack) -> None:
    body = {"model": NOWHERE, "input": "x" * (5 << 20)}
    status, answer = ask(stack, "POST", "/v1/embeddings", body)
    assert (status, answer["error"]["code"]) == (404, "model_not_found"), answer


def test_requests_wait_for_a_service_that_has_died(stack: Stack) -> None:
    stack.kill("http_svc")
    status, body = ask(stack, "GET", "/v1/models")
    if status == 503:  # it met a connection that was just breaking: clients come again
        assert body["error"]["code"] == "unavailable"
        status, body = ask(stack, "GET", "/v1/models")
    assert (status, body["object"]) == (200, "list")
