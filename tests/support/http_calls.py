"""Calls of the services as HTTP/1.1."""

from __future__ import annotations

import http.client
import json
from typing import Any


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
