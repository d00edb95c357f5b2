"""Envoy's configuration: envoy.yaml, its optional parts, and its forms outside of Compose.

`python -m stack.envoy_config FOLDER` writes what the container's image has: the configuration with
every choice of parts, and the files that are made for it.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from stack import callers
from stack.ports import (
    LOOPBACK,
    Ports,
)
from tools.connections_filter import connections_filter
from tools.descriptor_set import descriptor_set

_ROOT = Path(__file__).resolve().parent.parent
BASE = _ROOT / "envoy.yaml"
# What is added to it: parts that need certificates, a collector, API keys or names of certificates.
PARTS = _ROOT / "deploy" / "envoy"
TLS_FILES = ("server.pem", "server.key", "ca.pem")

# What is made for it, where the container's image has it.
_GENERATED_FOLDER = "/etc/envoy/"
_GENERATED = {"ml.binpb": descriptor_set, "connections.wasm": connections_filter}
_TLS_FOLDER = "/etc/envoy/tls/"
_CALLERS_FOLDER = "/etc/envoy/callers/"
# The optional parts, in the order in which they are added: the listeners of TLS take their filters
# from the first one, and the names of certificates are for one of these.
_PART_NAMES = ("tracing", "tls", "keys", "names")
# The filter before which those that check the caller are put: it tells the services who calls.
_CALLER_FILTER = "envoy.filters.http.header_mutation"
_COLLECTOR = "otel_collector"
# The longest wait of a call for its service in envoy.yaml, and what request_timeout has beyond it.
WAIT_SECONDS = 30
_REQUEST_SECONDS = 15
_LUA = "envoy.filters.http.lua"
# Fields of a cluster that only apply to names, not to fixed addresses.
_DNS_FIELDS = ("cluster_type", "wait_for_warm_on_init")


@dataclass(frozen=True)
class EnvoyOptions:
    """What a stack's Envoy has beside the plain port.

    Attributes:
        tls: the folder with `TLS_FILES`; None for no TLS listeners.
        collector: host and port that take traces over OTLP gRPC; None for no traces.
        callers: the folder with files of `callers.KINDS`; None for callers without keys.
        address: on which the ports for callers listen.
        wait_seconds: how long a call waits for a service that is starting.
    """

    tls: Path | None = None
    collector: tuple[str, int] | None = None
    callers: Path | None = None
    address: str = LOOPBACK
    wait_seconds: int = WAIT_SECONDS

    @property
    def caller_kinds(self) -> list[str]:
        """Which of `callers.KINDS` are checked; the names of certificates only with TLS."""
        kinds = callers.kinds_in(self.callers)
        return [kind for kind in kinds if kind != "client_names" or self.tls]


def load_config(
    *, tls: bool = False, tracing: bool = False, keys: bool = False, names: bool = False
) -> dict[str, Any]:
    """The configuration for containers, with the parts that are asked for."""
    config = _read(BASE)
    wanted = {"tracing": tracing, "tls": tls, "keys": keys, "names": names and tls}
    for name in _PART_NAMES:
        if wanted[name]:
            _add_part(config, _read(PARTS / f"envoy.{name}.yaml"))
    return config


def native_config(
    ports: Ports,
    options: EnvoyOptions = EnvoyOptions(),
    generated: Path = Path(_GENERATED_FOLDER),
    checks: Path = Path(_CALLERS_FOLDER),
) -> dict[str, Any]:
    """The configuration with the addresses, ports and paths of a native stack.

    Everything else stays as it is: routes, limits, health checks.

    Args:
        ports: where everything is.
        options: which of the optional parts are added.
        generated: the folder that `write_generated` filled.
        checks: the folder of what `callers.CallerFiles` writes.
    """
    kinds = options.caller_kinds
    config = load_config(
        tls=options.tls is not None,
        tracing=options.collector is not None,
        keys="api_keys" in kinds,
        names="client_names" in kinds,
    )
    _set_address(config["admin"]["address"], ports.envoy_admin)
    listeners = {
        "grpc": ports.envoy,
        "grpc_tls": ports.envoy_tls,
        "grpc_mtls": ports.envoy_mtls,
        "metrics": ports.envoy_metrics,
    }
    for listener in config["static_resources"]["listeners"]:
        name = listener["name"]
        if name not in listeners:  # reached from within Envoy alone
            continue
        address = LOOPBACK if name == "metrics" else options.address
        _set_address(listener["address"], listeners[name], address)
        # With port reuse a second Envoy could take the same port without an error.
        listener["enable_reuse_port"] = False
    _set_upstreams(config["static_resources"]["clusters"], ports, options.collector)
    _set_wait(config["static_resources"]["listeners"], options.wait_seconds)
    paths = {
        **{_GENERATED_FOLDER + name: str(generated / name) for name in _GENERATED},
        _TLS_FOLDER: f"{options.tls}/",
        _CALLERS_FOLDER: f"{checks}/",
    }
    replaced: dict[str, Any] = _replace_paths(config, paths)
    return replaced


def write_native_config(target: Path, ports: Ports, options: EnvoyOptions = EnvoyOptions()) -> None:
    """Writes `native_config`, which Envoy reads, and `write_generated` beside it; JSON is YAML."""
    write_generated(target.parent)
    config = native_config(ports, options, target.parent, target.with_name("callers"))
    target.write_text(json.dumps(config))


def write_generated(folder: Path) -> None:
    """Writes what the configuration names and the code makes: descriptor set, Wasm filter."""
    for name, made in _GENERATED.items():
        (folder / name).write_bytes(made())


def write_container_configs(folder: Path, hosts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes envoy[.tracing][.tls][.keys][.names].yaml, and the files that go with them.

    The entry point takes one of the configurations.

    Args:
        folder: where they go; it is made if it is missing.
        hosts: other host names of services, by those in envoy.yaml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_generated(folder)
    for kind, configuration in callers.KINDS.items():
        # The entry point puts the entries into it.
        (folder / f"{kind}.json").write_text(json.dumps(configuration("")))
    for wanted in itertools.product((False, True), repeat=len(_PART_NAMES)):
        parts = [name for name, chosen in zip(_PART_NAMES, wanted, strict=True) if chosen]
        if "names" in parts and "tls" not in parts:
            continue
        config = load_config(**dict.fromkeys(parts, True))
        _rename_hosts(config["static_resources"]["clusters"], hosts)
        text = yaml.dump(config, Dumper=_DUMPER, sort_keys=False)
        (folder / f"{'.'.join(['envoy', *parts])}.yaml").write_text(text)


_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _read(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open("rb") as stream:
        config: dict[str, Any] = yaml.load(stream, loader)  # noqa: S506 (a safe loader)
    return config


def _add_part(config: dict[str, Any], part: dict[str, Any]) -> None:
    """Adds a part: listeners, clusters, fields of the HTTP connection manager, a check of callers.

    Envoy itself could append the listeners and clusters, but it cannot merge into a listener's
    filter, and no YAML alias reaches into another file.
    """
    resources, added = config["static_resources"], part.get("static_resources", {})
    filters = resources["listeners"][0]["filter_chains"][0]["filters"]
    filters[-1]["typed_config"].update(part.get("http_connection_manager", {}))
    for listener in added.get("listeners", ()):
        for chain in listener["filter_chains"]:
            chain["filters"] = filters
    for kind, entries in added.items():
        resources[kind].extend(entries)
    if "http_filter" in part:
        _add_check(resources["listeners"], part)


def _add_check(listeners: list[dict[str, Any]], part: dict[str, Any]) -> None:
    """Adds a part's check of callers to the listeners that it names, and what goes with it."""
    chains = [
        chain
        for listener in listeners
        if listener["name"] in part["listeners"]
        for chain in listener["filter_chains"]
    ]
    # A copy of their own: other listeners may have the same filters, without this one.
    filters = copy.deepcopy(chains[0]["filters"])
    for chain in chains:
        chain["filters"] = filters
    manager, check = filters[-1]["typed_config"], part["http_filter"]
    names = [one["name"] for one in manager["http_filters"]]
    manager["http_filters"].insert(names.index(_CALLER_FILTER), check)
    manager["local_reply_config"]["mappers"][:0] = part["local_replies"]
    off = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        if route["name"] in part.get("open_routes", ()):
            # The routes share their settings.
            settings = route.get("typed_per_filter_config", {})
            route["typed_per_filter_config"] = settings | {check["name"]: off}


def _set_upstreams(
    clusters: list[dict[str, Any]], ports: Ports, collector: tuple[str, int] | None
) -> None:
    own = {
        "model_mgmt": ports.model_mgmt,
        "text": ports.text,
        "vision": ports.vision,
        "http": ports.http,
        "admin": ports.envoy_admin,
    }
    for cluster in clusters:
        if cluster["name"] not in (*own, _COLLECTOR):
            continue  # it leads to others of these, or to the listener "wait"
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


def _rename_hosts(clusters: list[dict[str, Any]], hosts: Mapping[str, str]) -> None:
    for cluster in clusters:
        for group in cluster.get("load_assignment", {}).get("endpoints", ()):
            for host in group["lb_endpoints"]:
                address = host["endpoint"]["address"].get("socket_address", {})
                if address.get("address") in hosts:
                    address["address"] = hosts[address["address"]]


def _set_wait(listeners: list[dict[str, Any]], seconds: int) -> None:
    """Changes how long calls wait for a service, and the time for a whole request with it."""
    before, after = WAIT_SECONDS + _REQUEST_SECONDS, seconds + _REQUEST_SECONDS
    for listener in listeners:
        manager = listener["filter_chains"][0]["filters"][-1]["typed_config"]
        if "request_timeout" in manager:
            manager["request_timeout"] = f"{after}s"
            for mapper in manager["local_reply_config"]["mappers"]:
                if text := mapper["body_format_override"].get("text_format_source"):
                    text["inline_string"] = text["inline_string"].replace(
                        f"not complete within {before} s", f"not complete within {after} s"
                    )
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            if "metadata" in route:
                route["metadata"]["filter_metadata"][_LUA]["wait_seconds"] = seconds


def _set_address(address: dict[str, Any], port: int, host: str = LOOPBACK) -> None:
    address["socket_address"] = {"address": host, "port_value": port}


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
