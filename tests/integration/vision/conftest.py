"""vision_svc in a process of its own, and clips to send to it."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ml import mediapipe_pb2_grpc
from tests.integration.vision.reference import REFERENCES
from tests.support.optional_models import require_model
from tests.support.processes import free_port, process, rss_bytes
from tests.support.stack import MODELS, VISION, open_channel, wait_for
from tools import vision_clips


@dataclass
class Vision:
    """A running service.

    Attributes:
        process: the service.
        address: its gRPC address.
        metrics_port: the port of its metrics page.
        channel, stub: a synchronous client. The asyncio client of grpcio reports INTERNAL instead
            of the status if a server ends a stream while the client writes.
    """

    process: subprocess.Popen[bytes]
    address: str
    metrics_port: int
    channel: grpc.Channel
    stub: mediapipe_pb2_grpc.MediapipeServiceStub

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as page:
            lines = page.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.split("{")[0].split(" ")[0] == name and all(w in line for w in wanted)
        )

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def rss(self) -> int:
        return rss_bytes(self.process.pid)


StartVision = Callable[..., Vision]


@pytest.fixture(scope="session")
def vision_models(models: Path) -> Path:
    """The folder of the vision models, without which no test here can run."""
    return models / "vision"


def _start(cleanup: ExitStack, module: str = "vision_svc", **settings: str) -> Vision:
    for _ in range(3):  # another process may take the port before the service listens on it
        vision = _start_once(cleanup, module, **settings)
        if vision.process.poll() is None:
            return vision
    raise AssertionError(f"{module} ended at its start")


def _start_once(cleanup: ExitStack, module: str, **settings: str) -> Vision:
    """Starts a service and waits until it serves or has ended."""
    port, metrics_port = free_port(), free_port()
    env = {
        "VISION_PORT": str(port),
        "VISION_METRICS_PORT": str(metrics_port),
        "VISION_LOG_LEVEL": "WARNING",
        **{f"VISION_{name.upper()}": value for name, value in settings.items()},
    }
    child = cleanup.enter_context(process("-m", module, env=env))
    address = f"127.0.0.1:{port}"
    channel = cleanup.enter_context(open_channel(address))
    health = health_pb2_grpc.HealthStub(channel)

    def serving_or_ended() -> bool:
        try:
            # By its name: on a busy machine another service may have taken the port meanwhile.
            answer = health.Check(health_pb2.HealthCheckRequest(service=VISION), timeout=5)
        except grpc.RpcError:
            return child.poll() is not None
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    wait_for(f"{module} serving", serving_or_ended)
    stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
    return Vision(child, address, metrics_port, channel, stub)


@contextmanager
def running_vision(**settings: str) -> Iterator[Vision]:
    """A service with these settings."""
    with ExitStack() as cleanup:
        yield _start(cleanup, **settings)


@pytest.fixture(scope="session")
def vision(vision_models: Path) -> Iterator[Vision]:
    """One service for many tests, which must not change it."""
    with running_vision(model_dir=str(vision_models)) as running:
        yield running


@pytest.fixture
def start_vision(vision_models: Path) -> Iterator[StartVision]:
    """Starts services with other settings, which tests may break."""
    with ExitStack() as cleanup:

        def start(module: str = "vision_svc", **settings: str) -> Vision:
            return _start(cleanup, module, **{"model_dir": str(vision_models), **settings})

        yield start


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The optional folder of pictures beside the checkout."""
    if not vision_clips.TEST_DATA.is_dir():
        pytest.skip("the folder ../shared/testdata is not there")
    return vision_clips.TEST_DATA


@pytest.fixture(autouse=True)
def _model_of_the_case(request: pytest.FixtureRequest) -> None:
    """Skips a case about a task or an RPC whose model is optional and could not be had."""
    case = getattr(request.node, "callspec", None)
    chosen = {case.params.get("task"), case.params.get("rpc")} if case else set()
    for task, reference in REFERENCES.items():
        if chosen & {task, reference.rpc}:
            require_model(MODELS, reference.asset)
