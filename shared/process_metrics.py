"""What the kernel knows about a process: figures for the metrics page (Linux)."""

from __future__ import annotations

import os
from dataclasses import dataclass
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
