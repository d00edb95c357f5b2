"""Fixtures of the tests of Envoy."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stack import ports
from stack.ports import Ports
from tests.support.own_envoy import Start, entry_point
from tests.support.processes import stack_ports
from tests.support.stack import Stack, stack_in, wait_for
from tools.dev_certs import make_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority of its own, a certificate of the server and one of a client."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="session")
def front(
    models: Path, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A stack with all listeners."""
    with stack_in(tmp_path_factory.mktemp("front"), "--tls", str(certificates)) as running:
        running.wait_serving()
        yield running


@pytest.fixture
def envoy_ports(stack: Stack) -> Ports:
    """Ports of an Envoy of its own in front of the services of the shared stack."""
    known = {name: int(address.split(":")[1]) for name, address in stack.addresses.items()}
    services = {name: known[name] for name in ("model_mgmt", "text", "vision", "http")}
    return replace(stack_ports(), **services)


@pytest.fixture
def start(tmp_path: Path, envoy_ports: Ports) -> Iterator[Start]:
    """Starts the entry point with a configuration, and waits until the port accepts."""
    started: list[subprocess.Popen[bytes]] = []

    def run(config: dict[str, Any]) -> subprocess.Popen[bytes]:
        process = entry_point(tmp_path, config)
        started.append(process)
        wait_for("the start of Envoy", lambda: ports.accepts(envoy_ports.envoy))
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
