"""The compose file's containers under a project name of their own, for tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from docker.errors import APIError
from docker.models.containers import Container
from testcontainers.compose import DockerCompose
from testcontainers.core.docker_client import DockerClient

from tests.support.processes import free_port
from tests.support.stack import ROOT, wait_for
from tools.models import model_dir

SERVICES = ("model_mgmt", "text", "vision", "http")
IMAGES = ("envoy", *SERVICES, "models", "provider")
# Limits on waiting; they end a test that hangs and measure nothing.
HEALTHY_SECONDS = 180.0
ROUTED_SECONDS = 300.0
STOP_SECONDS = 40

# Prints how many replicas of a service Envoy sends calls to; runs in a container beside it.
_ROUTED = """
import re, sys, urllib.request
page = urllib.request.urlopen("http://envoy:9902/stats/prometheus", timeout=10).read().decode()
name = f'envoy_cluster_membership_healthy{{envoy_cluster_name="{sys.argv[1]}"}}'
print(*(line.split()[-1] for line in page.splitlines() if line.startswith(name)))
"""
_CHILDREN = "/proc/1/task/1/children"


def image_name(service: str) -> str:
    """The image of a service, as the compose file names it by default."""
    return f"ml-services/{service}:{os.environ.get('TAG', 'latest')}"


class ContainerSet:
    """Containers of one project.

    Args:
        folder: for the file of variables.
        profiles: of the compose file; "demo" has a file provider.
        overrides: compose files that are merged into the project's own.
        variables: more of those that the compose file names; the models are those of this machine
            unless MODELS says otherwise.
    """

    def __init__(
        self,
        folder: Path,
        profiles: Sequence[str] = ("demo",),
        overrides: Sequence[Path] = (),
        **variables: str,
    ) -> None:
        self.project = f"ml-test-{uuid.uuid4().hex[:8]}"
        self.port = free_port()
        variables = {"MODELS": str(model_dir())} | variables
        variables |= {"COMPOSE_PROJECT_NAME": self.project, "ML_PORT": str(self.port)}
        file = folder / "compose.env"
        file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        self.compose = DockerCompose(
            ROOT,
            compose_file_name=[str(ROOT / "docker-compose.yml"), *map(str, overrides)],
            env_file=str(file),
            profiles=list(profiles),
        )
        self.client = DockerClient().client

    @property
    def address(self) -> str:
        """Envoy's, on this machine."""
        return f"127.0.0.1:{self.port}"

    def run(self, *arguments: str) -> str:
        """Runs `docker compose ...` and returns what it printed."""
        command = [*self.compose.docker_compose_command(), *arguments]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        return result.stdout

    def up(self, *services: str, scale: dict[str, int] | None = None) -> None:
        """Starts the containers that do not run, without waiting and without building."""
        replicas = [f"--scale={name}={count}" for name, count in (scale or {}).items()]
        self.run("up", "--detach", "--no-build", *replicas, *services)

    def down(self) -> None:
        """Removes everything of the project."""
        self.run("down", "--volumes", "--timeout", "1")

    def of(self, service: str) -> list[Container]:
        """The containers of a service, running or not, in the order of their numbers."""
        labels = [
            f"com.docker.compose.project={self.project}",
            f"com.docker.compose.service={service}",
        ]
        found = self.client.containers.list(all=True, filters={"label": labels})
        return sorted(found, key=lambda c: int(c.labels["com.docker.compose.container-number"]))

    def one(self, service: str) -> Container:
        """The only container of a service."""
        (container,) = self.of(service)
        return container

    def wait_healthy(self, *services: str) -> None:
        """Waits until all containers of the services are healthy."""
        for service in services:
            wait_for(
                f"health of {service}",
                lambda service=service: all(map(is_healthy, self.of(service))),
                HEALTHY_SECONDS,
            )

    def wait_routed(self, service: str, replicas: int) -> None:
        """Waits until this many replicas of a service take calls."""
        wait_for(
            f"{replicas} of {service} behind Envoy",
            lambda: self._beside_envoy(_ROUTED, service) == str(replicas),
            ROUTED_SECONDS,
        )

    def _beside_envoy(self, code: str, *arguments: str) -> str:
        """What Python code prints in a container of the services' network."""
        for container in (*self.of("text"), *self.of("vision")):
            with contextlib.suppress(APIError):  # one that does not run
                status, output = python(container, code, *arguments)
                if status == 0:
                    return output.strip()
        return ""

    def logs(self, lines: int = 25) -> str:
        """The end of every container's log."""
        return self.run("logs", "--no-color", "--tail", str(lines))


def is_healthy(container: Container) -> bool:
    """Whether the engine's own check of the container passes."""
    container.reload()
    return container.status == "running" and container.health == "healthy"


def execute(container: Container, *command: str, user: str = "") -> tuple[int, str]:
    """Runs a command in a container: its exit code and everything it printed."""
    result = container.exec_run(list(command), user=user)
    return result.exit_code, result.output.decode(errors="replace")


def python(container: Container, code: str, *arguments: str) -> tuple[int, str]:
    """Runs Python code in a container of a service."""
    return execute(container, "python", "-c", code, *arguments)


def kill_process(container: Container, signal: str = "KILL") -> None:
    """Kills the process inside: the engine sees a crash, not a deliberate stop."""
    code, output = execute(container, "sh", "-c", f"kill -{signal} $(cat {_CHILDREN})")
    assert code in (0, 137), output  # 137: the container ended under it


def started_at(container: Container) -> str:
    """When the container was last started."""
    container.reload()
    return str(container.attrs["State"]["StartedAt"])
