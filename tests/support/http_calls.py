"""Calls of the services as HTTP/1.1."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any


def post(
    address: str,
    rpc: str,
    body: bytes,
    *,
    content_type: str = "application/json",
    pieces: int | None = None,
    **headers: str,
) -> tuple[http.client.HTTPResponse, bytes]:
    """The answer to an HTTP/1.1 POST, and its body.

    Args:
        address: host:port.
        rpc: SERVICE/METHOD.
        body: what is sent.
        content_type: of the body.
        pieces: an answer is left after so many pieces of its body; None reads it to its end.
        **headers: more headers.
    """
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", f"/{rpc}", body, {"content-type": content_type, **headers})
        answer = connection.getresponse()
        if pieces is None:
            return answer, answer.read()
        return answer, b"".join(_first(answer, pieces))
    finally:
        connection.close()


def _first(answer: http.client.HTTPResponse, pieces: int) -> Iterator[bytes]:
    for _ in range(pieces):
        if not (piece := answer.read1()):
            return
        yield piece


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
