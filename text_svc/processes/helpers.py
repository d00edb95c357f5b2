"""Processes that a model's process starts for itself, each with a module of ours.

A process that was forked has their modules already, so it forks them as well: early, while it has
one thread. They wait for their first line, and begin to work when they are taken.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from importlib import import_module
from typing import IO, Protocol

from text_svc.processes import run_module
from text_svc.processes.forking import show_command

_waiting: dict[str, ForkedHelper] = {}


class Helper(Protocol):
    """What is used of `subprocess.Popen`, whose pipes are unbuffered."""

    @property
    def stdin(self) -> IO[bytes]: ...
    @property
    def stdout(self) -> IO[bytes]: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


class ForkedHelper:
    """A `Helper` that this process has forked."""

    def __init__(self, pid: int, stdin: int, stdout: int) -> None:
        self._pid = pid
        self._returncode: int | None = None
        self._descriptor = os.pidfd_open(pid)
        self.stdin = os.fdopen(stdin, "wb", buffering=0)
        self.stdout = os.fdopen(stdout, "rb", buffering=0)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        if self._returncode is None:
            if not select.select([self._descriptor], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a helper", timeout or 0)
            _, status = os.waitpid(self._pid, 0)
            os.close(self._descriptor)
            self._returncode = os.waitstatus_to_exitcode(status)
        return self._returncode

    def kill(self) -> None:
        """Sends SIGKILL."""
        if self._returncode is None:
            os.kill(self._pid, signal.SIGKILL)


def prefork(modules: Iterable[str]) -> None:
    """Forks a helper for each module. Call it while this process has one thread."""
    for module in modules:
        _waiting[module] = _fork(module)


def take(module: str) -> Helper:
    """The helper that waits, or a new one; its one argument is this process's id."""
    if waiting := _waiting.pop(module, None):
        return waiting
    return subprocess.Popen(  # type: ignore[return-value]  # noqa: S603
        run_module.command(module, str(os.getpid())),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )


def communicate(helper: Helper, data: bytes, seconds: float) -> bytes:
    """Sends data to a helper and returns all that it answers; it has ended then. Blocks.

    Raises:
        TimeoutError: it takes longer; it has been killed.
    """
    end = time.monotonic() + seconds
    answer = b""
    try:
        with contextlib.suppress(BrokenPipeError), helper.stdin:
            helper.stdin.write(data)
        while select.select([helper.stdout], [], [], max(0, end - time.monotonic()))[0]:
            block = helper.stdout.read(1 << 16)
            if not block:
                return answer
            answer += block
        raise TimeoutError
    finally:
        helper.stdout.close()
        helper.kill()
        helper.wait()


def end_waiting() -> None:
    """Ends the helpers that nobody has taken."""
    while _waiting:
        _, helper = _waiting.popitem()
        helper.stdin.close()
        helper.stdout.close()
        helper.kill()
        helper.wait()


def _fork(module: str) -> ForkedHelper:
    parent = os.getpid()
    child_in, stdin = os.pipe()
    stdout, child_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(child_in, 0)
        os.dup2(child_out, 1)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # those of this process, its report's too
        _run(module, parent)
    os.close(child_in)
    os.close(child_out)
    return ForkedHelper(pid, stdin, stdout)


def _run(module: str, parent: int) -> None:
    """Runs a module as a process of its own does. Does not return."""
    code = 1
    try:
        words = run_module.command(module, str(parent))
        show_command(words)
        sys.argv = list(words[2:])
        import_module(module).main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else bool(ended.code)
    except BaseException:  # noqa: BLE001  # the end of this process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
