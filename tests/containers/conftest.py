"""Fixtures for tests of the images and of the compose file. They need a container engine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# testcontainers reads it on import: its clean-up container would need an image of its own.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")

from tests.containers.containers import IMAGES, SERVICES, ContainerSet
from tests.contract.compiled import generate_client
from tests.support.stack import ROOT

MAIN_JOB_SERVICES = (*SERVICES, "envoy")


@pytest.fixture(scope="session")
def compose_plugin() -> None:
    """Skips without `docker compose`."""
    if not shutil.which("docker"):
        pytest.skip("there is no docker command")
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("the docker command has no compose plugin")


@pytest.fixture(scope="session")
def engine(compose_plugin: None) -> None:
    """Skips if no engine responds."""
    result = subprocess.run(["docker", "version"], capture_output=True, text=True, timeout=30)
    if result.returncode:
        pytest.skip(f"no container engine responds: {result.stderr.strip()}")


@pytest.fixture(scope="session")
def images(engine: None) -> None:
    """The images, built one after the other from the working tree."""
    for service in IMAGES:
        command = ["docker", "compose", "--profile", "demo", "build", "--quiet", service]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if result.returncode:
            pytest.fail(f"the image of {service} is not built:\n{result.stderr[-4000:]}")


@pytest.fixture(scope="session")
def containers(
    images: None, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ContainerSet]:
    """All containers, healthy. A test leaves them as it found them: one of each service."""
    containers = ContainerSet(tmp_path_factory.mktemp("containers"))
    try:
        containers.up()
        containers.wait_healthy(*MAIN_JOB_SERVICES)
        yield containers
    except AssertionError:
        print(containers.logs())
        raise
    finally:
        containers.down()


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client generated from the published contract."""
    folder = tmp_path_factory.mktemp("published")
    generate_client(folder)
    return folder


@pytest.fixture(autouse=True)
def _logs_of_failures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Prints the containers' logs when a test fails."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed and "containers" in request.fixturenames:
        print(request.getfixturevalue("containers").logs())
