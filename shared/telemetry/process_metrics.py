"""Memory, CPU time, threads and descriptors of processes, for the metrics page (Linux).

Read from /proc instead of with psutil, which the image of vision_svc does not have.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import astuple, dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ProcessFigures:
    """A process at one point in time.

    Attributes:
        resident_bytes: memory, including pages shared with other processes.
        cpu_seconds: user and system time since its start.
        threads: number of threads.
        open_fds: number of open file descriptors.
        major_faults: pages that it had to wait for, since they were read from the disk.
    """

    resident_bytes: int
    cpu_seconds: float
    threads: int
    open_fds: int
    major_faults: int


def tree_figures(pid: int) -> ProcessFigures | None:
    """The sum over a process and its descendants; None if the process is gone."""
    total = process_figures(pid)
    if total is None:
        return None
    for child in _children(pid):
        if figures := tree_figures(child):
            total = ProcessFigures(
                *(mine + its for mine, its in zip(astuple(total), astuple(figures), strict=True))
            )
    return total


def process_tree(pid: int) -> list[int]:
    """A process and its descendants, as far as there is a /proc."""
    return [pid, *(each for child in _children(pid) for each in process_tree(child))]


def proportional_bytes(pid: int) -> int:
    """Memory of a process, where a page that several share counts for each in parts (PSS).

    The kernel walks through its pages for that: some milliseconds for each GiB. Where it does not
    tell, it is the resident memory; 0 if the process is gone.
    """
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except OSError:
        return _memory(pid, "VmRSS:")
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def private_bytes(pid: int) -> int:
    """Memory that a process does not share with files on disk; 0 if it is gone."""
    return _memory(pid, "RssAnon:", "RssShmem:")


def writable_bytes(pid: int) -> int:
    """What the kernel counts against a process's RLIMIT_DATA, in use or not; 0 if it is gone."""
    return _memory(pid, "VmData:")


def _memory(pid: int, *names: str) -> int:
    """The sum of figures of /proc/PID/status, in bytes."""
    try:
        lines = Path("/proc", str(pid), "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(names))


def wants_core(pid: int) -> bool:
    """Whether a thread of a process runs now, or is ready to and waits for a core."""
    for thread in Path("/proc", str(pid), "task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended
            if thread.read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def _children(pid: int) -> list[int]:
    """The child processes; the kernel lists them by the thread that started them."""
    found: list[int] = []
    for thread in Path("/proc", str(pid), "task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, thread.read_text().split())
    return found


def process_figures(pid: int | None = None) -> ProcessFigures | None:
    """The figures of a process, by default this one; None if it is gone or there is no /proc."""
    folder = Path("/proc", str(pid or "self"))
    try:
        # The name that precedes these fields may contain spaces and brackets.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        open_fds = len(os.listdir(folder / "fd"))  # noqa: PTH208 (names are enough)
    except OSError:
        return None
    return ProcessFigures(
        resident_bytes=int(fields[21]) * _PAGE,
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        threads=int(fields[17]),
        open_fds=open_fds,
        major_faults=int(fields[9]),
    )
