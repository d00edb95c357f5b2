"""The contents of the compose files, without starting anything."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.support.stack import ROOT

pytestmark = pytest.mark.usefixtures("compose_plugin")


def config(*options: str) -> dict[str, Any]:
    """The merged and checked compose files."""
    command = ["docker", "compose", *options, "config", "--format", "json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return config("--profile", "*")["services"]


def test_every_container_is_confined(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert "privileged" not in service, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["pids_limit"] > 0, name
        # The fetcher of the models ends; everything else keeps running.
        assert service["restart"] == ("no" if name == "models" else "unless-stopped"), name
        assert "max-size" in service["logging"]["options"], name


def test_only_envoy_is_published_and_on_loopback() -> None:
    services = config("--profile", "demo")["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published.keys() == {"envoy"}
    assert {port["host_ip"] for port in published["envoy"]} == {"127.0.0.1"}


def test_only_model_mgmt_and_the_fetcher_have_a_way_out_and_envoy_a_way_in() -> None:
    merged = config()
    members = {
        network: {name for name, s in merged["services"].items() if network in s["networks"]}
        for network in merged["networks"]
    }
    assert merged["networks"]["services"]["internal"] is True
    assert members == {
        "front": {"envoy"},
        "services": {"envoy", "model_mgmt", "text", "vision", "http"},
        "application": {"model_mgmt"},
        "downloads": {"models"},
    }


def test_the_models_are_a_volume_that_the_fetcher_alone_writes() -> None:
    assert models_mounts() == {
        "models": ("volume", "models", False),
        "provider": ("volume", "models", True),
        "vision": ("volume", "models", True),
    }


def test_the_models_may_be_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", "./models")
    folder = str(ROOT / "models")
    assert models_mounts() == {
        "models": ("bind", folder, False),
        "provider": ("bind", folder, True),
        "vision": ("bind", folder, True),
    }


def models_mounts() -> dict[str, tuple[str, str, bool]]:
    """What each service mounts as its models: kind, source, whether it is read-only."""
    return {
        name: (mount["type"], mount["source"], mount.get("read_only", False))
        for name, service in config("--profile", "demo")["services"].items()
        for mount in service.get("volumes", ())
        if mount["target"] == "/models"
    }


def test_nothing_waits_for_anything_but_the_demos_provider() -> None:
    waiting = {
        (name, wanted, condition["required"])
        for name, service in config()["services"].items()
        for wanted, condition in service.get("depends_on", {}).items()
    }
    assert waiting == {("model_mgmt", "provider", False)}


def test_a_stop_leaves_time_to_drain(services: dict[str, dict[str, Any]]) -> None:
    # 3 s of drain and 20 s of grace in a service; 25 s in Envoy.
    periods = {
        name: services[name]["stop_grace_period"]
        for name in ("model_mgmt", "text", "vision", "http")
    }
    assert set(periods.values()) == {"30s"}
    assert services["envoy"]["stop_grace_period"] == "35s"


def test_traces_go_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = "http://collector:4317"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    services = config("--profile", "tls")["services"]
    name = "OTEL_EXPORTER_OTLP_ENDPOINT"
    endpoints = {
        service: settings["environment"][name]
        for service, settings in services.items()
        if name in settings["environment"]
    }
    tracing = ("envoy", "envoy-tls", "model_mgmt", "text", "vision", "http")
    assert endpoints == dict.fromkeys(tracing, endpoint)


def test_the_cuda_file_asks_for_a_device_and_a_cuda_torch() -> None:
    text = config("-f", "docker-compose.yml", "-f", "docker-compose.gpu.yml")["services"]["text"]
    (device,) = text["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert "+cpu" not in text["build"]["args"]["TORCH"]
    assert "/cpu" not in text["build"]["args"]["TORCH_INDEX_URL"]
    assert text["read_only"] is True
