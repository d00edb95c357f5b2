"""Calls of the services as HTTP/1.1."""

from __future__ import annotations

import http.client
import json
import socket
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


def is_open(client: socket.socket) -> bool:
    """Whether Envoy has said nothing on a connection, and not closed it."""
    before = client.gettimeout()
    client.settimeout(0.02)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    except ConnectionError:
        pass
    finally:
        client.settimeout(before)
    return False
