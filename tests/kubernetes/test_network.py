"""The NetworkPolicies allow the connections that the settings ask for, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.kubernetes.manifests import Built, compose

# From, to, port.
Edge = tuple[str, str, int]
NAME = "app.kubernetes.io/name"


@pytest.fixture(scope="module")
def demo(built: Callable[[str], Built]) -> Built:
    return built("overlays/demo")


def policies(objects: Built) -> Iterator[tuple[str, dict[str, Any]]]:
    """The policies of one service each, with its name."""
    for policy in objects.all("NetworkPolicy"):
        labels = policy["spec"]["podSelector"].get("matchLabels", {})
        if NAME in labels:
            yield labels[NAME], policy["spec"]


def named(peer: dict[str, Any]) -> str:
    name: str = peer["podSelector"]["matchLabels"][NAME]
    return name


def outgoing(objects: Built) -> set[Edge]:
    return {
        (source, named(peer), port["port"])
        for source, spec in policies(objects)
        for rule in spec.get("egress", ())
        for peer in rule["to"]
        for port in rule["ports"]
    }


def incoming(objects: Built) -> set[Edge]:
    return {
        (named(peer), target, port["port"])
        for target, spec in policies(objects)
        for rule in spec.get("ingress", ())
        for peer in rule.get("from", ())
        for port in rule["ports"]
    }


def asked_for(objects: Built) -> set[Edge]:
    """The connections that the settings and Envoy's configuration name."""
    edges = set()
    for name in objects.workloads():
        for variable, value in objects.env(name).items():
            if variable.endswith(("_ADDR", "_ADDRS")):
                host, _, port = value.partition(":")
                service = objects.one("Service", host)["spec"]
                edges.add((name, service["selector"][NAME], int(port)))
    config = yaml.safe_load(objects.config("envoy-config-1")["envoy.yaml"])
    for cluster in config["static_resources"]["clusters"]:
        if cluster["name"] in ("model_mgmt", "text", "vision", "http"):
            (group,) = cluster["load_assignment"]["endpoints"]
            address = group["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
            edges.add(("envoy", address["address"], address["port_value"]))
    return edges


def test_nothing_is_allowed_unless_a_policy_says_so(demo: Built) -> None:
    spec = demo.one("NetworkPolicy", "nothing")["spec"]
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_both_ends_of_each_connection_allow_it(demo: Built) -> None:
    assert outgoing(demo) == incoming(demo)


def test_what_is_allowed_is_what_the_settings_ask_for(demo: Built) -> None:
    assert outgoing(demo) == asked_for(demo)


def test_connections_are_within_the_networks_of_compose(demo: Built) -> None:
    services = compose()
    for source, target, _ in outgoing(demo):
        networks = [set(services[name.replace("-", "_")]["networks"]) for name in (source, target)]
        assert networks[0] & networks[1], (source, target)


def test_callers_reach_envoy_alone(built: Callable[[str], Built]) -> None:
    def open_ports(overlay: str) -> set[tuple[str, int]]:
        return {
            (name, port["port"])
            for name, spec in policies(built(overlay))
            for rule in spec.get("ingress", ())
            if "from" not in rule
            for port in rule["ports"]
        }

    assert open_ports("overlays/demo") == {("envoy", 50051)}
    assert open_ports("overlays/tls") == {("envoy", port) for port in (50051, 50053, 50054)}


def test_only_what_fetches_models_has_a_way_out(demo: Built) -> None:
    ways_out = [
        policy["spec"]
        for policy in demo.all("NetworkPolicy")
        for rule in policy["spec"].get("egress", ())
        if "to" not in rule
    ]
    (spec,) = ways_out
    (label,) = spec["podSelector"]["matchLabels"].items()
    with_label = {
        name
        for name, each in demo.workloads().items()
        if label in each["spec"]["template"]["metadata"]["labels"].items()
    }
    fetching = {name for name in demo.workloads() if demo.pod(name).get("initContainers")}
    assert with_label == fetching == {"vision", "provider"}


def test_prometheus_reaches_every_page_of_metrics(demo: Built) -> None:
    (rule,) = demo.one("NetworkPolicy", "metrics")["spec"]["ingress"]
    pages = {
        port["containerPort"]
        for name in demo.workloads()
        for port in demo.container(name)["ports"]
        if port["name"] == "metrics"
    }
    assert {each["port"] for each in rule["ports"]} == pages
