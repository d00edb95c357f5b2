"""A file provider that is killed and comes back within 30 s does not fail a load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ml import model_management_pb2 as pb
from ml import model_management_pb2_grpc as pb_grpc
from tests.support.attack import Attacks
from tests.support.processes import free_port, process
from tests.support.stack import EMBEDDER, MODELS, Stack, wait_for

LOAD = pb.LoadModelRequest(model_id=EMBEDDER, pipeline_type="feature-extraction")
ABSENT_SECONDS = 3


def test_a_provider_that_restarts(attack: Attacks, private_stack: Callable[..., Stack]) -> None:
    """A load waits for a provider that is down, and goes on where it was when that was killed."""
    port = free_port()
    provider = ("-m", "tools.dev_provider", "--root", str(MODELS / "text"), "--port", str(port))
    stack = private_stack("--provider", f"127.0.0.1:{port}")
    stack.wait_listening()
    stack.wait_serving()
    loaded: list[pb.LoadModelResponse] = []

    def load() -> None:
        with stack.channel() as channel:
            stub = pb_grpc.ModelManagementServiceStub(channel)
            loaded.append(stub.LoadModel(LOAD, timeout=300))

    with attack("17 provider restarts", stack, bystander=("models", "faces")) as seen:
        calls = threading.Thread(target=load)
        calls.start()
        time.sleep(ABSENT_SECONDS)  # the load begins while there is no provider
        with process(*provider, env={}) as first:
            wait_for("the first bytes of the weights", lambda: part_bytes(stack) > 1 << 20)
            first.kill()
            first.wait()
        assert not loaded
        assert part_bytes(stack) > 0  # in the middle of a file
        time.sleep(ABSENT_SECONDS)
        with process(*provider, env={}):
            calls.join(timeout=300)
        assert loaded
        assert loaded[0].success
        seen.say(f"absent for {ABSENT_SECONDS} s twice, killed in the middle of a file: loaded")


def part_bytes(stack: Stack) -> int:
    """Bytes of files that model_mgmt_svc is fetching."""
    parts = (stack.state_file.parent / "cache").rglob("*.part")
    return sum(part.stat().st_size for part in parts if part.exists())
