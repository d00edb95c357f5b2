"""A test's own Envoy, started by the container's entry point."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from stack.envoy import (
    Admin,
    find_binary,
)
from stack.envoy_config import native_config, write_container_configs, write_generated
from stack.ports import Ports, accepts
from tests.support.processes import stack_ports
from tests.support.stack import ROOT, Stack, wait_for

ENTRY_POINT = ROOT / "deploy" / "envoy" / "entrypoint.sh"

# Starts the entry point with a configuration, and waits until the port accepts.
Start = Callable[[dict[str, Any]], subprocess.Popen[bytes]]


def entry_point(
    folder: Path, config: dict[str, Any] | None, *arguments: str, **environment: str
) -> subprocess.Popen[bytes]:
    """The entry point as a process group, with a configuration or those that the image has."""
    source = folder / "source"
    write_container_configs(source)
    if config:
        (source / "envoy.yaml").write_text(yaml.safe_dump(config))
    write_generated(folder)
    settings = {
        "ENVOY": str(find_binary()),
        "CONFIG_DIR": str(source),
        "RUN_DIR": str(folder),
    }
    with (folder / "envoy.log").open("wb") as log:
        return subprocess.Popen(
            [ENTRY_POINT, "--disable-hot-restart", *arguments],
            env=os.environ | settings | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_upstream(admin: Admin) -> None:
    """Waits until Envoy reaches model_mgmt_svc."""

    def healthy() -> bool:
        with contextlib.suppress(OSError):  # the page does not respond in time
            return "model_mgmt" in admin.healthy_clusters()
        return False

    wait_for("a healthy upstream", healthy)


def nobody_connected(admin: Admin) -> bool:
    """Whether those who connected have left; false if the page does not respond in time."""
    with contextlib.suppress(OSError):
        so_far, open_now = admin.connections()
        return so_far > 0 and open_now == 0
    return False


@contextlib.contextmanager
def own_envoy(
    stack: Stack, folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None
) -> Iterator[Ports]:
    """An Envoy of its own in front of a stack's services, with a changed configuration.

    Args:
        stack: whose services it reaches.
        folder: for its files.
        change: changes the configuration in place.
    """
    known = {name: int(address.split(":")[1]) for name, address in stack.addresses.items()}
    services = {name: known[name] for name in ("model_mgmt", "text", "vision")}
    ports = replace(stack_ports(), **services)
    with envoy_before(ports, folder, set(services), change):
        yield ports


@contextlib.contextmanager
def envoy_before(
    ports: Ports, folder: Path, services: set[str], change: Callable[[dict[str, Any]], None]
) -> Iterator[Admin]:
    """An Envoy before services that listen on `ports`, once those that are named are healthy."""
    config = native_config(ports, generated=folder)
    change(config)
    process = entry_point(folder, config)
    try:
        wait_for("the start of Envoy", lambda: accepts(ports.envoy))
        admin = Admin(ports.envoy_admin)
        wait_for("healthy upstreams", lambda: _healthy(admin) >= services)
        yield admin
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _healthy(admin: Admin) -> set[str]:
    with contextlib.suppress(OSError):  # the page does not respond in time
        return set(admin.healthy_clusters())
    return set()


def filters_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The filters of the listener for callers; the last is the HTTP connection manager."""
    (chain,) = config["static_resources"]["listeners"][0]["filter_chains"]
    filters: list[dict[str, Any]] = chain["filters"]
    return filters


def manager_of(config: dict[str, Any]) -> dict[str, Any]:
    """The HTTP connection manager of the listener for callers."""
    manager: dict[str, Any] = filters_of(config)[-1]["typed_config"]
    return manager
