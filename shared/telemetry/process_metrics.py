"""What the kernel knows about a process: figures for the metrics page (Linux)."""

from __future__ import annotations

import contextlib
import os
from dataclasses import astuple, dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ProcessFigures:
    """A process at one moment.

    Attributes:
        resident_bytes: memory, pages shared with other processes included.
        cpu_seconds: user and system time since its start.
        threads: how many it has.
        open_fds: file descriptors that are open.
    """

    resident_bytes: int
    cpu_seconds: float
    threads: int
    open_fds: int


def tree_figures(pid: int) -> ProcessFigures | None:
    """The figures of a process and of all that it has started, together; None when it is gone."""
    total = process_figures(pid)
    if total is None:
        return None
    for child in _children(pid):
        if figures := tree_figures(child):
            total = ProcessFigures(
                *(mine + its for mine, its in zip(astuple(total), astuple(figures), strict=True))
            )
    return total


def _children(pid: int) -> list[int]:
    """Each thread has those that it has started."""
    found: list[int] = []
    for thread in Path("/proc", str(pid), "task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, thread.read_text().split())
    return found


def process_figures(pid: int | None = None) -> ProcessFigures | None:
    """The figures of a process, by default this one; None when it is gone or there is no /proc."""
    folder = Path("/proc", str(pid or "self"))
    try:
        # The name, which comes before, may hold spaces and brackets.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        open_fds = len(os.listdir(folder / "fd"))  # noqa: PTH208 (names are enough)
    except OSError:
        return None
    return ProcessFigures(
        resident_bytes=int(fields[21]) * _PAGE,
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        threads=int(fields[17]),
        open_fds=open_fds,
    )
