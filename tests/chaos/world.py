"""What a run of faults breaks: a real stack with a provider and small disks of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil

from stack.ports import accepts
from tests.chaos.models import Models
from tests.chaos.provider import Behaviour
from tests.chaos.up import SERVICE_VARIABLES
from tests.support import stack as stacks
from tests.support.processes import free_port
from tests.support.stack import ROOT, Stack, start_stack, up_command, wait_for

CACHE_MIB = 192
STATE_KIB = 256
# A process that hangs is ended after so long; the usual 30 and 60 s make a run of minutes too few.
HANG_SECONDS = 15
# For the models that stay, of 512 MiB and more each, and two that come and go: a third one evicts.
BUDGET_MIB = 2700


class World:
    """The stack, the provider and the models of a run.

    Attributes:
        folder: holds all of it; its path is short, since those of Unix sockets must be.
        models: what the provider serves.
        stack: the running stack.
        scratch: where the services' temporary files are.
    """

    def __init__(self, folder: Path, models: Models, settings: dict[str, str]) -> None:
        self.folder = folder
        self.models = models
        self.scratch = folder / "tmp"
        self.scratch.mkdir()
        self.clock = folder / "clock"
        self._port = free_port()
        self._provider: subprocess.Popen[bytes] | None = None
        self.behave(Behaviour())
        self.start_provider()
        self.stack = self._start_stack(settings)

    def _start_stack(self, settings: dict[str, str]) -> Stack:
        run = self.folder / "run"
        for name in ("cache", "state"):
            (run / name).mkdir(parents=True)
        # Not the folder of other stacks, from which those that lack room would remove theirs.
        self.models.take_conversions()
        environment = {
            "TEXT_CONVERTED_DIR": str(self.models.converted),
            "TMPDIR": str(self.scratch),
            "TEXT_HANG_SECONDS": str(HANG_SECONDS),
            "TEXT_MEMORY_BUDGET_MB": str(BUDGET_MIB),
            **settings,
            SERVICE_VARIABLES: json.dumps(self._clock_settings()),
        }
        up = up_command(run, "--models", str(self.models.folder), "--hang-seconds")
        up[up.index("stack")] = "tests.chaos.up"
        up += [str(HANG_SECONDS), "--provider", f"127.0.0.1:{self._port}"]
        mounts = [
            f"mount -t tmpfs -o size={CACHE_MIB}m tmpfs {run / 'cache'}",
            f"mount -t tmpfs -o size={STATE_KIB}k tmpfs {run / 'state'}",
        ]
        assigned = [f"{name}={value}" for name, value in environment.items()]
        script = " && ".join([*mounts, 'exec env "$@"'])
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
        stack = start_stack(run, command=[*command, *assigned, *up])
        stack.wait_listening()
        return stack

    def _clock_settings(self) -> dict[str, str]:
        """Lets `jump` move the clock of the services; nothing where libfaketime is not there."""
        if not (library := clock_library()):
            return {}
        self.jump(0)
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",  # it would be left over
        }

    def jump(self, seconds: int) -> None:
        """Moves the services' clock by so much from the real time; it takes them up to a second."""
        self.clock.with_suffix(".new").write_text(f"{seconds:+d}\n")
        self.clock.with_suffix(".new").replace(self.clock)

    def behave(self, behaviour: Behaviour) -> None:
        """Makes the provider behave so, from now on."""
        behaviour.write(self.models.folder)

    @property
    def provider_pid(self) -> int:
        assert self._provider is not None
        return self._provider.pid

    def start_provider(self) -> None:
        """Starts the provider, or starts it again if it has ended."""
        if self._provider is not None:
            self._provider.kill()
            self._provider.wait()
        command = [sys.executable, "-m", "tests.chaos.provider", str(self.models.folder)]
        with (self.folder / "provider.log").open("ab") as log:
            self._provider = subprocess.Popen(
                [*command, str(self._port)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )
        wait_for("the provider", lambda: accepts(self._port))

    def inside(self, name: str) -> Path:
        """A folder under the run's folder, such as "cache", as the stack sees it."""
        return Path(f"/proc/{self.stack.process.pid}/root{self.folder / 'run' / name}")

    def pid(self, target: str) -> int:
        """The process of a service, of Envoy or of the provider.

        Raises:
            KeyError: it has none now.
        """
        if target == "provider":
            return self.provider_pid
        if not (pid := self.stack.pids.get(target)):
            raise KeyError(target)
        return pid

    def children(self, *words: str) -> list[psutil.Process]:
        """The processes below text_svc whose command has all the words."""
        found = []
        with contextlib.suppress(psutil.Error, KeyError):
            service = psutil.Process(self.pid("text_svc"))
            for child in service.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if all(word in " ".join(child.cmdline()) for word in words):
                        found.append(child)
        return found

    def model_process(self, model_id: str) -> list[psutil.Process]:
        """The process that serves a model; none while there is none."""
        return self.children("text_svc.worker ", f'"{model_id}"')

    def stepper(self, model_id: str) -> list[psutil.Process]:
        """The process that computes for it."""
        workers = {worker.pid for worker in self.model_process(model_id)}
        return [each for each in self.children("openvino_process") if each.ppid() in workers]

    def close(self) -> None:
        """Ends everything, and removes the folder."""
        self.stack.stop()
        self.models.keep_conversions()
        if self._provider is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._provider.pid, signal.SIGCONT)
            self._provider.kill()
            self._provider.wait()


def clock_library() -> Path | None:
    """libfaketime, if it is there."""
    spec = find_spec("libfaketime")
    if spec is None or spec.origin is None or sys.platform != "linux":
        return None
    place = Path(spec.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return place if place.exists() else None


def can_mount() -> bool:
    """Whether this system lets a user have a small disk of its own."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def world(settings: dict[str, str] | None = None) -> Iterator[World]:
    """A running one; nothing of it is left at the end."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    running: World | None = None
    try:
        (folder / "models").mkdir()
        models = Models(folder / "models", stacks.MODELS / "vision")
        running = World(folder, models, settings or {})
        yield running
    finally:
        if running:
            running.close()
        shutil.rmtree(folder, ignore_errors=True)
