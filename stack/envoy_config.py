"""Envoy's configuration: envoy.yaml, its optional parts, and its form for a native stack.

`python -m stack.envoy_config FOLDER` writes what the container's image has: the configuration with
every choice of parts, and the descriptor set.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stack.ports import (
    LOOPBACK,
    Ports,
)
from tools.descriptor_set import descriptor_set

_ROOT = Path(__file__).resolve().parent.parent
BASE = _ROOT / "envoy.yaml"
# What is added to it: parts that need certificates or a collector.
PARTS = _ROOT / "deploy" / "envoy"
TLS_FILES = ("server.pem", "server.key", "ca.pem")

_DESCRIPTORS = "/etc/envoy/ml.binpb"
_TLS_FOLDER = "/etc/envoy/tls/"
# Fields of a cluster that only apply to names, not to fixed addresses.
_DNS_FIELDS = ("cluster_type", "wait_for_warm_on_init")


@dataclass(frozen=True)
class EnvoyOptions:
    """What a stack's Envoy has beside the plain port.

    Attributes:
        tls: the folder with `TLS_FILES`; None for no TLS listeners.
        collector: host and port that take traces over OTLP gRPC; None for no traces.
    """

    tls: Path | None = None
    collector: tuple[str, int] | None = None


def load_config(*, tls: bool = False, tracing: bool = False) -> dict[str, Any]:
    """The configuration for containers, with the parts that are asked for."""
    config = _read(BASE)
    # Tracing comes first: the listeners of TLS take their filters from the first one.
    for name, wanted in (("tracing", tracing), ("tls", tls)):
        if wanted:
            _add_part(config, _read(PARTS / f"envoy.{name}.yaml"))
    return config


def native_config(
    ports: Ports,
    options: EnvoyOptions = EnvoyOptions(),
    descriptors: Path = Path(_DESCRIPTORS),
) -> dict[str, Any]:
    """The configuration with the addresses, ports and paths of a native stack.

    Everything else stays as it is: routes, limits, health checks.

    Args:
        ports: where everything is.
        options: which of the optional parts are added.
        descriptors: where the descriptor set is.
    """
    config = load_config(tls=options.tls is not None, tracing=options.collector is not None)
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


def write_native_config(target: Path, ports: Ports, options: EnvoyOptions = EnvoyOptions()) -> None:
    """Writes `native_config`, which Envoy reads, and the descriptor set beside it; JSON is YAML."""
    descriptors = target.with_name("ml.binpb")
    descriptors.write_bytes(descriptor_set())
    target.write_text(json.dumps(native_config(ports, options, descriptors)))


def write_container_configs(folder: Path) -> None:
    """Writes ml.binpb and envoy[.tls][.tracing].yaml, of which the entry point takes one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ml.binpb").write_bytes(descriptor_set())
    for tls in (False, True):
        for tracing in (False, True):
            name = f"envoy{'.tls' * tls}{'.tracing' * tracing}.yaml"
            config = load_config(tls=tls, tracing=tracing)
            (folder / name).write_text(yaml.safe_dump(config, sort_keys=False))


def _read(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open("rb") as stream:
        config: dict[str, Any] = yaml.load(stream, loader)  # noqa: S506 (a safe loader)
    return config


def _add_part(config: dict[str, Any], part: dict[str, Any]) -> None:
    """Adds a part's listeners and clusters, and its fields of the HTTP connection manager.

    Envoy itself could append the listeners and clusters, but it cannot merge into a listener's
    filter, and no YAML alias reaches into another file.
    """
    resources, added = config["static_resources"], part["static_resources"]
    filters = resources["listeners"][0]["filter_chains"][0]["filters"]
    filters[0]["typed_config"].update(part.get("http_connection_manager", {}))
    for listener in added.get("listeners", ()):
        for chain in listener["filter_chains"]:
            chain["filters"] = filters
    for kind, entries in added.items():
        resources[kind].extend(entries)


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
    """A copy of the tree in which strings that begin with a key of `paths` begin with its value."""
    if isinstance(node, dict):
        return {key: _replace_paths(value, paths) for key, value in node.items()}
    if isinstance(node, list):
        return [_replace_paths(value, paths) for value in node]
    if isinstance(node, str):
        for old, new in paths.items():
            if node.startswith(old):
                return new + node[len(old) :]
    return node


if __name__ == "__main__":
    write_container_configs(Path(sys.argv[1]))
