"""Real stacks for tests: `python -m stack` in a process of its own, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ml import common_pb2, model_management_pb2_grpc
from tests.support import caches
from tests.support.processes import stack_ports

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
# Conversions are keyed by content, so all stacks of all runs share one folder of them.
CONVERTED = ROOT / "run" / "converted"
EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
CHAT = "HuggingFaceTB/SmolLM2-135M-Instruct"

MODEL_MGMT = "ml.ModelManagementService"
TEXT = "ml.TransformersService"
VISION = "ml.MediapipeService"
SERVICES = (MODEL_MGMT, TEXT, VISION)
# The process behind each name.
PROCESS_OF = {MODEL_MGMT: "model_mgmt_svc", TEXT: "text_svc", VISION: "vision_svc"}

# Limits for events that must happen: they end a test that hangs, and measure nothing.
START_SECONDS = 240.0
SERVING_SECONDS = 300.0
_MARK = "ML_TEST_STACK"
_MESSAGE_BYTES = 64 << 20

T = TypeVar("T")

# Stacks that run now, for the logs that a failed test shows.
running: list[Stack] = []


def wait_for(what: str, probe: Callable[[], T], seconds: float = START_SECONDS) -> T:
    """The first true value of `probe`."""
    give_up = time.monotonic() + seconds
    while True:
        start = time.monotonic()
        if value := probe():
            return value
        now = time.monotonic()
        if now > give_up:
            raise AssertionError(f"{what} did not happen within {seconds:g} s")
        # A probe that takes long, as one of all processes does, leaves the cores to what it awaits.
        time.sleep(max(0.02, 3 * (now - start)))


def marked_processes(mark: str) -> list[psutil.Process]:
    """Every living process that was started, at any depth, with this mark in its environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(_MARK) == mark:
                found.append(process)
    return found


def read_state(state_file: Path) -> dict[str, Any]:
    """What the runner wrote: addresses, pids and states by name."""
    state: dict[str, Any] = json.loads(state_file.read_text())
    return state


def open_channel(address: str) -> grpc.Channel:
    """A synchronous channel that takes large messages. Close it, or use it with `with`."""
    return grpc.insecure_channel(address, options=_channel_options())


def open_aio_channel(address: str) -> grpc.aio.Channel:
    """The same for asyncio."""
    return grpc.aio.insecure_channel(address, options=_channel_options())


def _channel_options() -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MESSAGE_BYTES),
        # A pool shared with other tests would share their connections too.
        ("grpc.use_local_subchannel_pool", 1),
    ]


class Stack:
    """A stack that was started by a test.

    Attributes:
        process: what the test started; killing it must end everything.
        mark: finds all processes of the stack.
        state_file: written by the runner once Envoy listens.
    """

    def __init__(self, process: subprocess.Popen[bytes], mark: str, state_file: Path) -> None:
        self.process = process
        self.mark = mark
        self.state_file = state_file

    @property
    def state(self) -> dict[str, Any]:
        """The state file as it is now."""
        return read_state(self.state_file)

    @property
    def addresses(self) -> dict[str, str]:
        """Name to host:port: envoy, envoy_admin, envoy_metrics, provider, text, text_metrics, …"""
        return dict(self.state["addresses"])

    @property
    def pids(self) -> dict[str, int]:
        """Process name to pid, as of now."""
        return dict(self.state["pids"])

    @property
    def logs(self) -> Path:
        """The folder with NAME.log for each process."""
        return self.state_file.parent / "logs"

    def access_log(self) -> list[dict[str, Any]]:
        """The lines of Envoy's access log, without its own messages and an incomplete last line."""
        lines = []
        for line in (self.logs / "envoy.log").read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict)]

    def channel(self, name: str = "envoy") -> grpc.Channel:
        """A channel to Envoy, or to one of the addresses."""
        return open_channel(self.addresses[name])

    def aio_channel(self, name: str = "envoy") -> grpc.aio.Channel:
        """A channel for asyncio."""
        return open_aio_channel(self.addresses[name])

    def wait_listening(self) -> None:
        """Waits until the runner says that Envoy listens."""

        def listening() -> bool:
            assert self.process.poll() is None, f"the runner ended: {self.output()}"
            return self.state_file.exists()

        wait_for("the start of Envoy", listening)

    def wait_serving(
        self, services: Sequence[str] = SERVICES, seconds: float = SERVING_SECONDS
    ) -> None:
        """Waits until Envoy reaches the services and they report SERVING."""
        wanted = {PROCESS_OF[name] for name in services}

        def reached() -> bool:
            states = self.state["states"]
            return all(states.get(name) == "serving" for name in wanted)

        wait_for(f"serving of {', '.join(sorted(wanted))}", reached, seconds)
        with self.channel() as channel:
            for name in services:
                wait_for(f"health of {name}", partial(is_healthy, channel, name), seconds)

    def processes(self) -> list[psutil.Process]:
        """All living processes of the stack, of any depth."""
        return marked_processes(self.mark)

    def commands(self) -> list[tuple[psutil.Process, str]]:
        """The same with their commands, in one line each."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):  # it has just ended
                found.append((process, " ".join(process.cmdline())))
        return found

    def kill(self, name: str, signum: int = signal.SIGKILL) -> int:
        """Sends a signal to a process of the stack, and returns its pid."""
        pid = wait_for(f"the start of {name}", lambda: self.pids.get(name, 0))
        os.kill(pid, signum)
        return pid

    def wait_restarted(self, name: str, old_pid: int) -> int:
        """Waits for a process with another pid, and returns that."""
        return wait_for(
            f"the restart of {name}", lambda: (pid := self.pids.get(name, 0)) != old_pid and pid
        )

    def wait_gone(self) -> None:
        """Waits until no process of the stack is left."""
        try:
            wait_for("the end of all processes", lambda: not self.processes())
        except AssertionError as error:
            left = [f"{process.pid} {process.cmdline()}" for process in self.processes()]
            raise AssertionError(f"{error}; left are {left}") from None

    def output(self) -> str:
        """What the runner has printed, when the test let it print into files."""
        printed = self.state_file.parent / "output.txt"
        return printed.read_text() if printed.exists() else ""

    def log_tails(self, lines: int = 15) -> str:
        """The end of every log, for the report of a failure."""
        tails = [f"--- runner\n{self.output()[-3000:]}"]
        for log in sorted(self.logs.glob("*.log")):
            text = log.read_text(errors="replace").splitlines()[-lines:]
            tails.append(f"--- {log.name}\n" + "\n".join(line[:500] for line in text))
        return "\n".join(tails)

    def stop(self) -> None:
        """Stops the stack, and kills what does not stop."""
        with contextlib.suppress(ValueError):
            running.remove(self)
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(60)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()


def is_healthy(channel: grpc.Channel, service: str) -> bool:
    """True when the health service says SERVING for a name."""
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def list_models(channel: grpc.Channel) -> grpc.StatusCode:
    """The status of a GetLoadedModels."""
    stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
    try:
        stub.GetLoadedModels(common_pb2.EmptyRequest(), timeout=30)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def start_stack(
    folder: Path,
    *arguments: str,
    command: Sequence[str] | None = None,
    stdout: int | IO[bytes] | None = None,
) -> Stack:
    """Starts a stack without waiting for anything.

    One of the project's own models begins with their files in its caches, as one that was stopped
    and started again.

    Args:
        folder: for its logs, caches and state.
        arguments: more options of `python -m stack up`.
        command: a whole other command, which leads to a stack in `folder` somehow.
        stdout: where stdout and stderr go; by default into a file that `Stack.output` reads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if command is None and not {"--models", "--provider"} & set(arguments):
        for service in ("model_mgmt", "text"):
            for model in (EMBEDDER, CHAT):
                caches.fill(folder / "cache" / service, MODELS / "text", model)
    state_file = folder / "stack.json"
    mark = uuid.uuid4().hex
    with contextlib.ExitStack() as files:
        if stdout is None:
            stdout = files.enter_context((folder / "output.txt").open("wb"))
        process = subprocess.Popen(
            command or up_command(folder, *arguments),
            cwd=ROOT,
            env=os.environ | {_MARK: mark, "TEXT_CONVERTED_DIR": str(CONVERTED)},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
        )
    stack = Stack(process, mark, state_file)
    running.append(stack)
    return stack


def any_python() -> str:
    """A Python other than this project's own, if there is one."""
    system = Path("/usr/bin/python3")
    return str(system) if system.exists() else sys.executable


def up_command(folder: Path, *arguments: str) -> list[str]:
    """The command of a stack on free ports, which ends with this process."""
    ports = () if "--base-port" in arguments else ("--base-port", str(stack_ports().envoy))
    return [
        *(sys.executable, "-m", "stack", "up", "--run-dir", str(folder)),
        *("--exit-with-parent", *ports, *arguments),
    ]


@contextlib.contextmanager
def stack_in(folder: Path, *arguments: str) -> Iterator[Stack]:
    """A stack whose Envoy listens; it is stopped at the end."""
    stack = start_stack(folder, *arguments)
    try:
        stack.wait_listening()
        yield stack
    finally:
        stack.stop()
