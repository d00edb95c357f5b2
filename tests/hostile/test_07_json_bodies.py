"""JSON bodies that are never finished take a bounded part of Envoy's memory, and end."""

from __future__ import annotations

import contextlib
import itertools
import socket
from pathlib import Path
from typing import Any

from tests.support.attack import Attacks
from tests.support.http_calls import is_open, post
from tests.support.own_envoy import manager_of, own_envoy
from tests.support.stack import MODEL_MGMT, TEXT, Stack, wait_for

BODIES = 90
LIMIT = 32
BODY_BYTES = 4 << 20
# To Envoy whatever is not gRPC is JSON, also what only begins like it.
KINDS = ("application/json", "application/grpcx", "application/grpc-web-x", "application/grpc;x")
REFUSAL = b"32 JSON calls are running, which is the limit: try again in a second"


def unfinished(address: str, size: int, kind: str = KINDS[0]) -> socket.socket:
    """A JSON call whose body lacks its last byte."""
    host, _, port = address.rpartition(":")
    client = socket.create_connection((host, int(port)), timeout=60)
    head = (
        f"POST /{TEXT}/GenerateEmbeddings HTTP/1.1\r\nhost: localhost\r\n"
        f"content-type: {kind}\r\ncontent-length: {size}\r\n\r\n"
    )
    # A refused call is closed while its body is sent.
    with contextlib.suppress(ConnectionError):
        client.sendall(head.encode() + b'{"texts": ["' + b"x" * (size - 13))
    return client


def answer(client: socket.socket) -> bytes:
    """The whole response, until Envoy closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while more := client.recv(65536):
            received += more
    return received


def test_unfinished_json_bodies(attack: Attacks, stack: Stack) -> None:
    """90 JSON bodies that are never finished: 32 are held, others refused, gRPC is served."""
    address = stack.addresses["envoy"]
    with contextlib.ExitStack() as opened:
        with attack("7 unfinished JSON bodies", stack) as seen:
            clients = [
                opened.enter_context(unfinished(address, BODY_BYTES - 1, kind))
                for kind in itertools.islice(itertools.cycle(KINDS), BODIES)
            ]
            # The others have a whole body to send, which a refusal may cut off.
            probe = opened.enter_context(unfinished(address, 100))
            refused = answer(probe)
            assert refused.startswith(b"HTTP/1.1 429 ")
            assert refused.endswith(REFUSAL)
            held = sum(map(is_open, clients))
            assert held == LIMIT
            seen.say(f"{held} of {BODIES} bodies held: {REFUSAL.decode()}")
        assert seen.report is not None
        (envoy,) = (each for each in seen.report.memory.values() if each.name == "envoy")
        # Its share of the heap, and what 90 sockets cost.
        assert envoy.worst - envoy.before < 2 * LIMIT * BODY_BYTES

    def served() -> bool:
        return post(address, f"{MODEL_MGMT}/GetLoadedModels", b"{}")[0].status == 200

    wait_for("an answer to a JSON call", served)


def test_an_unfinished_body_ends(stack: Stack, tmp_path: Path) -> None:
    """A body that is not complete in time is 408, with the number, and its place is free again."""

    def change(config: dict[str, Any]) -> None:
        manager_of(config)["request_timeout"] = "2s"

    with own_envoy(stack, tmp_path, change) as ports:
        with unfinished(f"127.0.0.1:{ports.envoy}", 1000) as client:
            ended = answer(client)
        assert ended.startswith(b"HTTP/1.1 408 ")
        assert ended.endswith(b"the request was not complete within 45 s")
