"""Silent connections from one address take a bounded part of all, and end."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

from stack.envoy_config import native_config
from stack.ports import Ports
from tests.support.attack import Attacks
from tests.support.http_calls import is_open
from tests.support.own_envoy import filters_of, own_envoy
from tests.support.stack import Stack, wait_for

MANY = 60
# Of one address, and of all together; the bystander has a few connections.
LIMIT, GLOBAL_LIMIT = 12, 30
SECONDS = 2
# Any address of 127.0.0.0/8 reaches this machine, so each can be another caller.
HOSTILE, USUAL = "127.0.0.2", "127.0.0.3"


def small_limits(config: dict[str, Any]) -> None:
    """Changes Envoy's limits of connections."""
    filters_of(config)[0]["typed_config"]["config"]["configuration"]["value"] = f"{LIMIT} {SECONDS}"
    for monitor in config["overload_manager"]["resource_monitors"]:
        if "max_active_downstream_connections" in monitor["typed_config"]:
            monitor["typed_config"]["max_active_downstream_connections"] = GLOBAL_LIMIT


def connect(source: str, port: int) -> socket.socket:
    """A connection from this address."""
    return socket.create_connection(("127.0.0.1", port), 30, source_address=(source, 0))


def is_served(client: socket.socket) -> bool:
    """Whether a request is answered; the connection stays open."""
    client.settimeout(30)
    with contextlib.suppress(ConnectionError):
        client.sendall(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
        return client.recv(4096).startswith(b"HTTP/1.1 404")
    return False


def test_the_limits() -> None:
    listeners = native_config(Ports())["static_resources"]["listeners"]
    config = listeners[0]["filter_chains"][0]["filters"][0]["typed_config"]["config"]
    assert config["configuration"]["value"] == "1000 20"


def test_silent_connections_from_one_address(attack: Attacks, stack: Stack, tmp_path: Path) -> None:
    """One address gets its share of the connections; the silent ones end, and others are served."""
    with (
        contextlib.ExitStack() as opened,
        own_envoy(stack, tmp_path, small_limits) as ports,
        attack("8 silent connections", stack, address=f"127.0.0.1:{ports.envoy}") as seen,
    ):
        usual = opened.enter_context(connect(USUAL, ports.envoy))
        assert is_served(usual)
        silent = [opened.enter_context(connect(HOSTILE, ports.envoy)) for _ in range(MANY)]
        # Two threads that count an address for the first time may both begin at 1.
        held = wait_for(
            "the end of those over the limit",
            lambda: (count := sum(map(is_open, silent))) <= LIMIT + 1 and count,
        )
        wait_for("the end of the silent ones", lambda: not any(map(is_open, silent)))
        assert is_served(usual), "a connection that has been used may be silent"
        with connect(HOSTILE, ports.envoy) as again:
            assert is_served(again)
        seen.say(f"{held} of {MANY} silent connections held, for {SECONDS} s")
