"""The ports of a stack, and whether they are free."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104 (only if the operator asks for it)
# Below Linux's default range for outgoing connections, so that no connection takes a port between
# the check and the start.
_FREE_RANGE = range(20_000, 32_000)
# A process that was just killed may hold its port a little longer.
_PATIENCE_SECONDS = 1.0


class PortError(Exception):
    """A port cannot be used; the message says why, and which process holds it if that is known."""


@dataclass(frozen=True)
class Ports:
    """Every port of one stack; those that are not for callers are on loopback."""

    envoy: int = 50051
    envoy_admin: int = 9901
    envoy_metrics: int = 9902
    provider: int = 50052
    model_mgmt: int = 50061
    text: int = 50062
    vision: int = 50063
    model_mgmt_metrics: int = 9461
    text_metrics: int = 9462
    vision_metrics: int = 9463
    envoy_tls: int = 50053
    envoy_mtls: int = 50054
    http: int = 50064
    http_metrics: int = 9464


def choose_ports(base: str | None, envoy: int | None) -> Ports:
    """The ports for `--base-port` (None, a number or "auto") and `--port` (None, a number, 0).

    Raises:
        ValueError: the base is neither a number in range nor "auto", or `--port` is a port that
            another process of the stack uses.
    """
    count = len(fields(Ports))
    if base is None:
        numbers = list(astuple(Ports()))
    elif base == "auto":
        free = (port for port in free_ports() if port != envoy)
        numbers = [next(free) for _ in range(count)]
    elif base.isdecimal() and 1024 <= int(base) <= 65535 - count:
        numbers = list(range(int(base), int(base) + count))
    else:
        raise ValueError(
            f"--base-port is {base!r}; it must be auto or a number from 1024 to {65535 - count}"
        )
    if envoy is not None:
        numbers[0] = envoy or next(port for port in free_ports() if port not in numbers)
    for field, number in zip(fields(Ports)[1:], numbers[1:], strict=True):
        if number == numbers[0]:
            raise ValueError(
                f"port {number} is what {field.name} listens on: choose another --port, or other "
                "ports for the rest with --base-port"
            )
    return Ports(*numbers)


def free_ports() -> Iterator[int]:
    """Free ports, from a random one on, so that stacks started together rarely collide."""
    start = int.from_bytes(os.urandom(4), "big") % len(_FREE_RANGE)
    for step in range(len(_FREE_RANGE)):
        port = _FREE_RANGE[(start + step) % len(_FREE_RANGE)]
        if is_free(port):
            yield port


def is_free(port: int) -> bool:
    """True when nothing listens on the port. Connections that are closing do not count.

    Raises:
        PortError: this user may not use the port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise PortError(f"port {port} cannot be used: {error.strerror}") from None
        return True


def accepts(port: int, timeout: float = 0.2, host: str = LOOPBACK) -> bool:
    """True when something accepts connections on the port."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return False
    return True


def require_free(ports: list[int]) -> None:
    """Waits up to a second for the ports to be free.

    Raises:
        PortError: one is not.
    """
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while taken := [port for port in ports if not is_free(port)]:
        if time.monotonic() > give_up:
            port = taken[0]
            raise PortError(f"port {port} is in use{_by_whom(port)}")
        time.sleep(0.05)


def _by_whom(port: int) -> str:
    import psutil  # needed only for the error message

    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:  # macOS shows them to root alone
        return ""
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or connection.laddr[1:] != (port,):
            continue
        if connection.pid is None:
            break
        try:
            command = " ".join(psutil.Process(connection.pid).cmdline())
        except psutil.Error:
            break
        return f" by process {connection.pid} ({command[:80]})"
    return ""
