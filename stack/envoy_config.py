"""The project's envoy.yaml, rewritten for a native stack."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stack.ports import (
    LOOPBACK,
    Ports,
)
from tools.descriptor_set import descriptor_set

SOURCE = Path(__file__).resolve().parent.parent / "envoy.yaml"
TLS_FILES = ("server.pem", "server.key", "ca.pem")

_DESCRIPTORS = "/etc/envoy/ml.binpb"
_TLS_FOLDER = "/etc/envoy/tls/"
# Fields of a cluster that mean something for names alone.
_DNS_FIELDS = ("cluster_type", "wait_for_warm_on_init")
_PART = re.compile(r"^ *# (begin|end) (\w+)$")


@dataclass(frozen=True)
class Options:
    """What a stack's Envoy has beside the plain port.

    Attributes:
        tls: the folder with `TLS_FILES`; None for no TLS listeners.
        collector: host and port that take traces over OTLP gRPC; None for no traces.
    """

    tls: Path | None = None
    collector: tuple[str, int] | None = None


def native_config(
    ports: Ports,
    options: Options = Options(),
    descriptors: Path = Path(_DESCRIPTORS),
) -> dict[str, Any]:
    """envoy.yaml with the addresses, ports and paths of a native stack.

    Everything else stays as it is: routes, limits, health checks.

    Args:
        ports: where everything is.
        options: which of the optional parts are kept.
        descriptors: where the descriptor set is.
    """
    wanted = {"tls": options.tls, "tracing": options.collector}
    text = _keep_parts(SOURCE.read_text(), [name for name in wanted if wanted[name]])
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    config: dict[str, Any] = yaml.load(text, loader)  # noqa: S506 (a safe loader)
    _set_address(config["admin"]["address"], ports.envoy_admin)
    listeners = {
        "grpc": ports.envoy,
        "grpc_tls": ports.envoy_tls,
        "grpc_mtls": ports.envoy_mtls,
        "metrics": ports.envoy_metrics,
    }
    for listener in config["static_resources"]["listeners"]:
        _set_address(listener["address"], listeners[listener["name"]])
        # With port reuse a second Envoy could take the same port without an error.
        listener["enable_reuse_port"] = False
    _set_upstreams(config["static_resources"]["clusters"], ports, options.collector)
    paths = {_DESCRIPTORS: str(descriptors), _TLS_FOLDER: f"{options.tls}/"}
    replaced: dict[str, Any] = _replace_paths(config, paths)
    return replaced


def write_native_config(target: Path, ports: Ports, options: Options = Options()) -> None:
    """Writes `native_config`, which Envoy reads, and the descriptor set beside it; JSON is YAML."""
    descriptors = target.with_name("ml.binpb")
    descriptors.write_bytes(descriptor_set())
    target.write_text(json.dumps(native_config(ports, options, descriptors)))


def _keep_parts(text: str, wanted: Collection[str]) -> str:
    """Leaves out what stands between "# begin NAME" and "# end NAME" unless NAME is wanted."""
    kept, skipping = [], False
    for line in text.splitlines():
        if mark := _PART.match(line):
            skipping = mark[1] == "begin" and mark[2] not in wanted
        elif not skipping:
            kept.append(line)
    return "\n".join(kept)


def _set_upstreams(
    clusters: list[dict[str, Any]], ports: Ports, collector: tuple[str, int] | None
) -> None:
    own = {
        "model_mgmt": ports.model_mgmt,
        "text": ports.text,
        "vision": ports.vision,
        "admin": ports.envoy_admin,
    }
    for cluster in clusters:
        (group,) = cluster["load_assignment"]["endpoints"]
        (host,) = group["lb_endpoints"]
        address = host["endpoint"]["address"]
        if cluster["name"] in own:
            cluster["type"] = "STATIC"
            for field in _DNS_FIELDS:
                cluster.pop(field, None)
            _set_address(address, own[cluster["name"]])
        elif collector:
            address["socket_address"] = {"address": collector[0], "port_value": collector[1]}


def _set_address(address: dict[str, Any], port: int) -> None:
    address["socket_address"] = {"address": LOOPBACK, "port_value": port}


def _replace_paths(node: Any, paths: dict[str, str]) -> Any:
    """The same tree with other beginnings of the strings that begin with one of `paths`."""
    if isinstance(node, dict):
        return {key: _replace_paths(value, paths) for key, value in node.items()}
    if isinstance(node, list):
        return [_replace_paths(value, paths) for value in node]
    if isinstance(node, str):
        for old, new in paths.items():
            if node.startswith(old):
                return new + node[len(old) :]
    return node
