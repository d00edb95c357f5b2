"""The runner and what it starts, when processes are killed and nobody listens to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from ml import common_pb2 as common_pb
from ml import mediapipe_pb2 as vision_pb
from ml import mediapipe_pb2_grpc as vision_grpc
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from stack.child import MAX_FAILURES
from stack.ports import accepts
from tests.support.processes import free_port
from tests.support.stack import (
    EMBEDDER,
    MODEL_MGMT,
    TEXT,
    Stack,
    any_python,
    start_stack,
    up_command,
    wait_for,
)

PrivateStack = Callable[..., Stack]
MIN_PIPE_BYTES = 4096


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """The writing end of the smallest pipe, full from the start, which nobody reads."""
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, MIN_PIPE_BYTES)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * MIN_PIPE_BYTES)
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


def load(stack: Stack, model: str) -> None:
    """Loads a model through Envoy, which puts a process below text_svc."""
    with stack.channel() as channel:
        stub = models_grpc.ModelManagementServiceStub(channel)
        answer = stub.LoadModel(models_pb.LoadModelRequest(model_id=model))
        assert answer.success, answer.message


def generations(stack: Stack) -> int:
    """How deep the tree of processes below the runner is."""
    text = psutil.Process(stack.pids["text_svc"])
    return 2 + bool(text.children())


def test_calls_wait_until_the_service_is_up_and_after_it_died(private_stack: PrivateStack) -> None:
    """The first load, too, which reaches model_mgmt_svc before text_svc serves."""
    stack = private_stack()
    stack.wait_listening()
    with stack.channel() as channel:
        stub = models_grpc.ModelManagementServiceStub(channel)
        assert stub.LoadModel(models_pb.LoadModelRequest(model_id=EMBEDDER)).success

        runner = stack.kill("runner", signal.SIGSTOP)  # it would start the service again
        try:
            stack.kill("model_mgmt_svc")
            port = int(stack.addresses["model_mgmt"].rpartition(":")[2])
            wait_for("its end", lambda: not accepts(port))
            with pytest.raises(grpc.RpcError) as failure:
                stub.GetLoadedModels(common_pb.EmptyRequest(), timeout=2)
            assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            waits = stub.GetLoadedModels.future(common_pb.EmptyRequest())
        finally:
            os.kill(runner, signal.SIGCONT)
        assert [model.model_id for model in waits.result().models] == [EMBEDDER]


def test_a_service_that_fails_again_and_again_is_not_waited_for(
    private_stack: PrivateStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_MAX_STREAMS", "no number")
    stack = private_stack()
    stack.wait_listening()
    with stack.channel() as channel:
        stub = vision_grpc.MediapipeServiceStub(channel)

        def message() -> str:
            with pytest.raises(grpc.RpcError) as failure:
                stub.DetectFaces(vision_pb.ImageRequest())
            assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
            return failure.value.details() or ""

        # A call that waits is told when the service counts as failed, long before its 30 s.
        wait_for("the news", lambda: message() == "the service has failed and is down")
        assert stack.output().count("vision_svc exited") >= MAX_FAILURES
        start = time.monotonic()
        assert message() == "the service has failed and is down"
        assert time.monotonic() - start < 5


def test_a_dead_child_is_told_and_started_again(private_stack: PrivateStack) -> None:
    stack = private_stack()
    stack.wait_listening()
    for name in ("provider", "envoy"):
        old = stack.kill(name)
        stack.wait_restarted(name, old)
        assert f"{name} was killed by SIGKILL" in stack.output()
    port = int(stack.addresses["envoy"].rpartition(":")[2])
    wait_for("the new Envoy", lambda: accepts(port))


@pytest.mark.parametrize("victim", ["guard", "runner"])
def test_nothing_outlives_the_runner(private_stack: PrivateStack, victim: str) -> None:
    stack = private_stack()
    stack.wait_listening()
    stack.wait_serving([MODEL_MGMT, TEXT])
    load(stack, EMBEDDER)
    assert generations(stack) == 3
    stack.kill(victim)
    stack.wait_gone()


def test_started_as_the_application_does_it(private_stack: PrivateStack, tmp_path: Path) -> None:
    """python3 ml_server.py, pipes that nobody reads, SIGKILL to that one process."""
    port = free_port()
    with full_pipe() as pipe:
        stack = private_stack(
            command=[
                *(any_python(), "ml_server.py", "--port", str(port)),
                *("--base-port", "auto", "--run-dir", str(tmp_path / "stack0")),
            ],
            stdout=pipe,
        )
        stack.wait_listening()
        assert stack.addresses["envoy"] == f"127.0.0.1:{port}"
        assert stack.pids["guard"] == stack.process.pid
        stack.wait_serving([TEXT])
        # With all pipes full, the runner still does its work.
        stack.wait_restarted("vision_svc", stack.kill("vision_svc"))
        stack.process.kill()
        stack.wait_gone()


def test_nothing_outlives_the_starter(private_stack: PrivateStack, tmp_path: Path) -> None:
    command = up_command(tmp_path / "stack0")
    starter = f"import subprocess, time; subprocess.Popen({command!r}); time.sleep(600)"
    stack = private_stack(command=[sys.executable, "-c", starter])
    stack.wait_listening()
    assert stack.pids["guard"] != stack.process.pid
    stack.process.kill()
    stack.wait_gone()


def test_nothing_outlives_the_demonstration(private_stack: PrivateStack) -> None:
    command = [sys.executable, "-m", "demo", "--port", str(free_port())]
    stack = private_stack(command=command)

    def begun() -> bool:
        assert stack.process.poll() is None, stack.output()
        return len(stack.processes()) > 4  # itself, guard, runner, Envoy, a service

    wait_for("the start of its stack", begun)
    stack.process.kill()
    stack.wait_gone()


def test_a_starter_that_ends_the_thread_that_started_it_keeps_its_stack(
    private_stack: PrivateStack, tmp_path: Path
) -> None:
    """The kernel tells of the end of a thread as of the end of its process."""
    command = up_command(tmp_path / "stack0")
    starter = (
        "import subprocess, threading, time\n"
        f"thread = threading.Thread(target=lambda: subprocess.Popen({command!r}))\n"
        "thread.start(); thread.join(); print('thread ended', flush=True); time.sleep(600)"
    )
    stack = private_stack(command=[sys.executable, "-c", starter])
    stack.wait_listening()
    assert "thread ended" in stack.output()
    stack.wait_restarted("provider", stack.kill("provider"))
    assert stack.process.poll() is None


_ESCAPES = """
import subprocess, sys, time
from stack import guard
def run():
    # A process that leaves session, group and parent behind, as daemons do.
    subprocess.Popen(["setsid", "-f", "sleep", "600"])
    print("started", flush=True)
    if sys.argv[1] == "return":
        return 7
    time.sleep(600)
print(guard.run_guarded(run, None))
"""


def test_a_starter_that_ignores_its_children_hides_no_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _ESCAPES, "return"]
    starter = (
        "import os, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        f"os.execv({sys.executable!r}, {command!r})"
    )
    stack = start_stack(tmp_path, command=[sys.executable, "-c", starter])
    try:
        stack.process.wait(60)
        assert stack.output().split()[-1] == "7"
    finally:
        stack.stop()


@pytest.mark.parametrize("end", ["return", "kill"])
def test_even_a_daemon_does_not_outlive_its_guard(tmp_path: Path, end: str) -> None:
    stack = start_stack(tmp_path, command=[sys.executable, "-c", _ESCAPES, end])
    try:
        if end == "kill":
            wait_for("three processes", lambda: len(stack.processes()) == 3)
            (runner,) = psutil.Process(stack.process.pid).children()
            runner.kill()
        stack.process.wait(60)
        assert stack.output().split()[-1] == ("7" if end == "return" else str(128 + signal.SIGKILL))
        assert not stack.processes()
    finally:
        stack.stop()
