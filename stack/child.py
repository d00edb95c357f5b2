"""One process of the stack: started, watched, restarted when it dies."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from stack import guard
from stack.layout import (
    ROOT,
    ChildSpec,
)

STARTING, SERVING, NOT_SERVING = "starting", "serving", "not serving"
RESTARTING, FAILED, STOPPED = "restarting", "failed", "stopped"
DRAINED = "drained"

# The first restart in a row is immediate, the second comes after this delay, which then doubles.
FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 30.0
# From this many deaths in a row on it is reported as failed; it is still restarted.
MAX_FAILURES = 5
# A process that lived this long does not count as failed before.
_GOOD_LIFE_SECONDS = 10.0
# For a service to write its tracebacks, before it is killed: on a busy machine that takes a while.
_TRACEBACK_SECONDS = 5.0
# A log that has not grown for this long has them all: threads are written one after the other.
_QUIET_SECONDS = 0.3
MAX_LOG_BYTES = 64 << 20
# For its page of metrics, which a thread of its own writes.
_PAGE_SECONDS = 0.5


class Child:
    """A process described by a `ChildSpec`. Not thread-safe: the runner's main thread owns it."""

    def __init__(self, spec: ChildSpec, logs: Path) -> None:
        self.spec = spec
        self.log = logs / f"{spec.name}.log"
        self.state = STARTING
        self.pid: int | None = None
        self.failures = 0
        self.silent_probes = 0
        self.retry_at = 0.0
        self._started = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process in a session of its own, its output appended to its log file.

        Must be called from the main thread: the child dies with the thread that forked it.
        """
        parent = os.getpid()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.spec.command,
                cwd=ROOT,
                env=os.environ | self.spec.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: guard.prepare_child(parent),
            )
        self.pid = self._process.pid
        self.state = STARTING
        self.silent_probes = 0
        self._started = time.monotonic()

    def is_drained(self) -> bool:
        """Whether somebody has drained it by hand, as its page of metrics says."""
        if not self.spec.metrics_port:
            return False
        page = http.client.HTTPConnection(
            self.spec.host, self.spec.metrics_port, timeout=_PAGE_SECONDS
        )
        try:
            page.request("GET", "/metrics")
            return b"\nreplica_drained 1.0\n" in page.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            page.close()

    def signal(self, signum: int) -> None:
        """Sends a signal to the process if it is running."""
        if self.pid is not None:
            os.kill(self.pid, signum)

    def kill_hung(self) -> None:
        """Kills a process that hangs; a service writes its tracebacks to its log first."""
        size = self._log_size()
        for signum in (signal.SIGUSR1, signal.SIGCONT):
            self.signal(signum)
        if self.spec.cluster:  # else it is no service of ours, and writes none
            self._wait_for_tracebacks(size)
        self.signal(signal.SIGKILL)

    def _wait_for_tracebacks(self, size: int) -> None:
        deadline = time.monotonic() + _TRACEBACK_SECONDS
        before = size
        while time.monotonic() < deadline:
            time.sleep(_QUIET_SECONDS)
            now = self._log_size()
            if now == before != size:
                return
            before = now

    def _log_size(self) -> int:
        try:
            return self.log.stat().st_size
        except OSError:
            return 0

    def ended(self, code: int) -> str:
        """Records the end of the process, and returns a sentence about it.

        Args:
            code: the exit code, or minus the signal that killed it.
        """
        if self._process is not None:
            self._process.returncode = code  # reaped by the runner, which owns all children
        self.pid = self._process = None
        if time.monotonic() - self._started > _GOOD_LIFE_SECONDS:
            self.failures = 0
        self.failures += 1
        delay = 0.0
        if self.failures > 1:
            delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** (self.failures - 2))
        self.retry_at = time.monotonic() + delay
        self.state = FAILED if self.failures >= MAX_FAILURES else RESTARTING
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"
        last = self.last_log_line()
        said = f" (last log line: {last})" if last else ""
        when = f"in {delay:g} s" if delay else "at once"
        return f"{self.spec.name} {how}{said}; it restarts {when}"

    @property
    def failed(self) -> bool:
        """Whether it has died too often in a row, and has not served since."""
        return self.failures >= MAX_FAILURES and self.state != SERVING

    def note(self, message: str) -> None:
        """Adds a warning to the log, as a line of JSON as the process writes them."""
        line = {"level": "warning", "logger": "stack", "message": message}
        with contextlib.suppress(OSError), self.log.open("a") as log:
            log.write(json.dumps(line) + "\n")

    def last_log_line(self) -> str:
        """The last line of the log, of JSON only the message, truncated to 200 characters."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        line = next((line.strip() for line in reversed(lines) if line.strip()), "")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            line = str(json.loads(line)["message"])
        return line[:200]

    def rotate_log(self, at: int = MAX_LOG_BYTES) -> None:
        """Moves the log to NAME.log.1 once it has `at` bytes; the process goes on writing."""
        try:
            if self.log.stat().st_size < at:
                return
            old = self.log.with_suffix(".log.1")
            if self.pid is None:
                self.log.replace(old)
            else:  # the process keeps the file open, so its content is moved instead
                old.write_bytes(b"")
                _copy(self.log, old)
                os.truncate(self.log, 0)
        except OSError:
            pass  # failing to rotate a log is no reason to stop


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(1 << 20):
            writer.write(block)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
