"""A child process, begun as a model's is, that tries what it must not be able to do."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from text_svc.processes.child import begin
from text_svc.processes.specs import ChildSpec, Report


class TrialSpec(ChildSpec):
    """What the child tries.

    Attributes:
        own: the folder of its model.
        other: a folder of another model.
        home: of the user.
        port: where something listens.
        abstract: the name of an abstract socket on which something listens.
        take_bytes: memory to take instead of all that.
        take: how: "private" memory, or memory that is "shared".
        wait: tries nothing, and goes on.
    """

    own: Path
    other: Path
    home: Path = Path()
    port: int = 0
    abstract: str = ""
    take_bytes: int = 0
    take: str = "private"
    wait: bool = False

    def reads(self) -> list[Path]:
        return [self.own]


class TrialReport(Report):
    """What came of each attempt: "done", or the name of the error."""

    outcomes: dict[str, str] = Field(default_factory=dict)


def outcome(attempt: Callable[[], object]) -> str:
    """Tries something."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def connect(family: int, address: object) -> None:
    with socket.socket(family) as client:
        client.connect(address)  # type: ignore[arg-type]


def bind() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))


def read_by_a_program(path: str) -> None:
    """A program that it starts tries to read a file."""
    command = "import sys; open(sys.argv[1]).read()"
    if subprocess.run((sys.executable, "-c", command, path), stderr=subprocess.DEVNULL).returncode:
        raise PermissionError(errno.EACCES, "it failed")


def attempts(spec: TrialSpec) -> dict[str, Callable[[], object]]:
    """By what each would be."""
    return {
        "reads its model": (spec.own / "config.json").read_bytes,
        "lists its model": lambda: list(spec.own.iterdir()),
        "writes into its scratch folder": lambda: (spec.scratch / "file").write_text("x"),
        "starts a program": lambda: read_by_a_program(str(spec.own / "config.json")),
        "reads /etc/passwd": Path("/etc/passwd").read_bytes,
        "has a program read /etc/passwd": lambda: read_by_a_program("/etc/passwd"),
        "reads another model": (spec.other / "config.json").read_bytes,
        "lists another model": lambda: list(spec.other.iterdir()),
        "lists all models": lambda: list(spec.other.parent.iterdir()),
        "lists the home folder": lambda: list(spec.home.iterdir()),
        "reads /proc of process 1": Path("/proc/1/status").read_bytes,
        "reads /proc of its parent": Path(f"/proc/{spec.parent_pid}/environ").read_bytes,
        "writes into its model": lambda: (spec.own / "new").write_text("x"),
        "overwrites its model": lambda: (spec.own / "config.json").write_text("x"),
        "removes a file of its model": (spec.own / "config.json").unlink,
        "writes into /tmp": lambda: Path("/tmp/stranger").write_text("x"),
        "makes a link": lambda: (spec.scratch / "link").symlink_to("/etc/passwd"),
        "connects to a port": lambda: connect(socket.AF_INET, ("127.0.0.1", spec.port)),
        "listens on a port": bind,
        "connects to an abstract socket": lambda: connect(socket.AF_UNIX, f"\0{spec.abstract}"),
        "signals its parent": lambda: os.kill(spec.parent_pid, signal.SIGURG),
    }


def take(spec: TrialSpec) -> None:
    """Takes memory, and touches it, in steps of 16 MiB."""
    held = []
    for _ in range(spec.take_bytes >> 24):
        if spec.take == "shared":
            held.append(mmap.mmap(-1, 1 << 24))
            held[-1].write(b"x" * (1 << 24))
        else:
            held.append(b"x" * (1 << 24))  # type: ignore[arg-type]


def main() -> None:
    """Entry point; the one argument is a `TrialSpec` as JSON."""
    spec = begin(TrialSpec, "trial")
    if spec.wait:
        spec.send(TrialReport())
        time.sleep(60)
    if spec.take_bytes:
        take(spec)
        spec.send(TrialReport())
        return
    spec.send(TrialReport(outcomes={name: outcome(each) for name, each in attempts(spec).items()}))


if __name__ == "__main__":
    main()
