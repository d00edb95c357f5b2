"""How large the images are and how soon they serve: `python -m tools.containers.report`.

Starts the demo's containers with empty volumes under a project name of its own, and removes them.
Models are not fetched, so their time is not in it. The images must have been built. `--write` puts
the table into docs/operations.md, between `<!-- containers -->` and `<!-- end containers -->`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tools.docs.places import OPERATIONS, place

ROOT = Path(__file__).resolve().parents[2]

COMPOSE = ("docker", "compose", "--profile", "demo")
# What is started: all but `models`, which would fetch them.
STARTED = ("envoy", "model_mgmt", "text", "vision", "http", "provider")
# Each container and its name in the health service that Envoy routes to.
HEALTH_NAMES = {
    "envoy": None,
    "model_mgmt": "ml.ModelManagementService",
    "text": "ml.TransformersService",
    "vision": "ml.MediapipeService",
}
LIMIT_SECONDS = 300.0
POLL_SECONDS = 0.1


def _output(*command: str, env: Mapping[str, str] | None = None) -> str:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def image_megabytes() -> dict[str, float]:
    """The size of each service's image, unpacked, in MB."""
    services = json.loads(_output(*COMPOSE, "config", "--format", "json"))["services"]
    sizes = {}
    for name, service in services.items():
        size = _output("docker", "image", "inspect", "--format", "{{.Size}}", service["image"])
        sizes[name] = int(size) / 1e6
    return sizes


@contextmanager
def started(env: Mapping[str, str]) -> Iterator[float]:
    """Starts the containers and yields the time of the call."""
    start = time.monotonic()
    try:
        _output(*COMPOSE, "up", "--detach", "--no-build", *STARTED, env=env)
        yield start
    finally:
        _output(*COMPOSE, "down", "--volumes", "--timeout", "1", env=env)


def _healthy(env: Mapping[str, str]) -> set[str]:
    """The services that the engine calls healthy; compose prints a list, or one object a line."""
    text = _output(*COMPOSE, "ps", "--format", "json", env=env).strip()
    rows = json.loads(text if text.startswith("[") else f"[{','.join(text.splitlines())}]")
    return {row["Service"] for row in rows if row["Health"] == "healthy"}


def _serving(port: int) -> set[str]:
    """The services that respond through Envoy, and Envoy if it responds at all."""
    found = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types name no methods
        for container, name in HEALTH_NAMES.items():
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(service=name or ""), timeout=2)
                if name and answer.status == health_pb2.HealthCheckResponse.SERVING:
                    found.add(container)
                found.add("envoy")
            except grpc.RpcError as error:
                # Envoy names the upstream that is missing; a refused connection does not.
                if "upstream" in (error.details() or ""):
                    found.add("envoy")
    return found


def _times(start: float, wanted: set[str], look: Callable[[], set[str]]) -> dict[str, float]:
    """Seconds from `start` until each name was first seen."""
    seen: dict[str, float] = {}
    while missing := wanted - seen.keys():
        if time.monotonic() - start > LIMIT_SECONDS:
            sys.exit(f"{', '.join(sorted(missing))} did not come up in {LIMIT_SECONDS:g} s")
        found = look()
        seen |= dict.fromkeys(found & missing, time.monotonic() - start)
        time.sleep(POLL_SECONDS)
    return seen


def measure() -> tuple[dict[str, float], dict[str, float]]:
    """Seconds from `up` until each serves through Envoy, and until the engine calls it healthy."""
    port = _free_port()
    env = os.environ | {"COMPOSE_PROJECT_NAME": "ml-services-report", "ML_PORT": str(port)}
    wanted = set(HEALTH_NAMES)
    with started(env) as start:
        serving = _times(start, wanted, lambda: _serving(port))
        return serving, _times(start, wanted, lambda: _healthy(env))


def table() -> str:
    """The report as Markdown."""
    serving, healthy = measure()
    lines = ["| image | size, MB | from `up` to serving, s | to healthy, s |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for name, size in image_megabytes().items():
        times = [f"{found[name]:.1f}" if name in found else "" for found in (serving, healthy)]
        lines.append(f"| `{name}` | {size:.0f} | {times[0]} | {times[1]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tools.containers.report", description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/operations.md")
    options = parser.parse_args()
    text = table()
    sys.stdout.write(text)
    if options.write:
        OPERATIONS.write_text(place(OPERATIONS.read_text(), "containers", text))


if __name__ == "__main__":
    main()
