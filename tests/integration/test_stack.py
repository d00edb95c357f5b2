"""The native stack: how it starts, what it refuses, how it stops."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from tests.support.stack import (
    EMBEDDER,
    MODEL_MGMT,
    ROOT,
    TEXT,
    Stack,
    any_python,
    is_healthy,
    marked_processes,
    open_channel,
    start_stack,
    wait_for,
)

PrivateStack = Callable[..., Stack]


def test_envoy_accepts_before_any_service_serves(private_stack: PrivateStack) -> None:
    started = time.monotonic()
    stack = private_stack()
    stack.wait_listening()
    print(f"Envoy listens {time.monotonic() - started:.2f} s after the start of the runner")
    with stack.channel() as channel:
        assert not is_healthy(channel, "")
    states = stack.state["states"]
    assert states["envoy"] == "serving"
    assert "serving" not in {states["model_mgmt_svc"], states["text_svc"], states["vision_svc"]}


def test_sigterm_stops_everything_with_exit_code_0(private_stack: PrivateStack) -> None:
    stack = private_stack()
    stack.wait_listening()
    stack.wait_serving([TEXT])
    stack.process.terminate()
    assert stack.process.wait(60) == 0
    assert not stack.processes()
    assert not stack.state_file.exists()


def test_a_call_that_runs_when_the_stack_is_stopped_comes_to_its_end(
    private_stack: PrivateStack, models: Path, tmp_path: Path
) -> None:
    # More than the buffers on the way take, and little enough for the drain of a slow machine.
    folder = tmp_path / "models"
    (folder / "text/org/name").mkdir(parents=True)
    (folder / "text/org/name/file").write_bytes(bytes(16 << 20))
    (folder / "vision").symlink_to(models / "vision")
    stack = private_stack("--models", str(folder))
    stack.wait_listening()
    stack.wait_serving([MODEL_MGMT])
    request = models_pb.ModelFileRequest(model_id="org/name", file_path="file")
    with stack.channel() as channel:
        chunks = models_grpc.ModelManagementServiceStub(channel).GetModelFile(request)
        first = next(chunks)
        stack.process.terminate()
        wait_for("the start of the stop", lambda: "stopping" in stack.output())
        received = len(first.data) + sum(len(chunk.data) for chunk in chunks)
    assert received == first.total_size
    assert stack.process.wait(60) == 0


def test_both_ends_can_be_watched_from_outside(private_stack: PrivateStack) -> None:
    """The addresses in the state file are where the processes really are."""
    stack = private_stack()
    stack.wait_listening()
    wait_for("serving of the provider", lambda: stack.state["states"]["provider"] == "serving")
    with open_channel(stack.addresses["provider"]) as channel:
        request = models_pb.ModelFileRequest(model_id=EMBEDDER, file_path="config.json")
        chunks = list(models_grpc.ModelManagementServiceStub(channel).GetModelFile(request))
    assert chunks[-1].is_last


def test_ml_server_without_its_environment_says_what_to_do(tmp_path: Path) -> None:
    copy = tmp_path / "ml_server.py"
    copy.write_text((ROOT / "ml_server.py").read_text())
    done = subprocess.run(
        [any_python(), str(copy), "--port", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "run `make setup`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_told_with_its_holder(models: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refusal = _refused(tmp_path, "--base-port", "auto", "--port", str(port))
    assert f"port {port} is in use by process {os.getpid()}" in refusal


def test_a_second_stack_in_the_same_folder_is_refused(private_stack: PrivateStack) -> None:
    stack = private_stack()
    stack.wait_listening()
    refusal = _refused(stack.state_file.parent, "--base-port", "auto")
    assert f"process {stack.process.pid}" in refusal
    assert stack.process.poll() is None


def test_a_missing_model_folder_is_told(tmp_path: Path) -> None:
    refusal = _refused(tmp_path, "--base-port", "auto", "--models", str(tmp_path / "none"))
    assert "run `make models`" in refusal


def _refused(folder: Path, *arguments: str) -> str:
    """What `up` says when it refuses to start: one line, code 1, and no process left."""
    output = folder / "refusal.txt"
    with output.open("wb") as file:
        stack = start_stack(folder, *arguments, stdout=file)
        code = stack.process.wait(60)
    left = marked_processes(stack.mark)
    stack.stop()
    said = output.read_text()
    assert (code, left) == (1, [])
    assert said.count("\n") == 1, said
    return said


def test_status_and_down_find_the_stack(private_stack: PrivateStack) -> None:
    stack = private_stack()
    stack.wait_listening()
    assert _control("status", stack.state_file) == (0, "envoy")
    assert _control("down", stack.state_file)[0] == 0
    assert stack.process.wait(60) == 0
    assert _control("status", stack.state_file) == (1, "no")


def test_down_never_touches_a_stranger_with_the_same_pid(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        state = tmp_path / "stack.json"
        state.write_text(f'{{"pid": {stranger.pid}, "start_ticks": 1}}')
        assert _control("down", state) == (0, "no")
        assert stranger.poll() is None
        stranger.kill()


def _control(command: str, state_file: Path) -> tuple[int, str]:
    """Exit code and first word of a command of the runner."""
    done = subprocess.run(
        [sys.executable, "-m", "stack", command, "--state-file", str(state_file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.split()[0]
