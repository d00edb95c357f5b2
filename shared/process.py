"""Child processes that end with their parent, exit codes in words, and the memory limit."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import tempfile
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# Exit code of a process that `exit_if_out_of_memory` has ended.
OUT_OF_MEMORY_EXIT = 76


def die_with_parent(parent_pid: int) -> None:
    """Makes the kernel kill this process when its parent ends, for whatever reason.

    Args:
        parent_pid: the parent at the start; if it is gone already, this process exits.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("the process that started this one has ended")


def exit_if_out_of_memory(error: BaseException) -> None:
    """Ends this process if `error` says that Python got no memory for an object.

    Whatever takes a little memory fails next, such as waking the event loop for a call, which then
    waits for ever. A failed allocation of an array has a class of its own, and harms no other work.
    """
    if type(error) is MemoryError:
        os._exit(OUT_OF_MEMORY_EXIT)


def memory_limit_bytes() -> int:
    """Bytes of memory for this process: the control group's limit, else the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = Path("/sys/fs/cgroup", name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return min(total, int(text))
    return total


def usable_cores() -> int:
    """Number of cores that this process may run on; where the system cannot say, of the machine."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_tracebacks() -> str:
    """Where each thread of this process is, in Python."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read().decode(errors="replace")


def exit_text(returncode: int | None) -> str:
    """How a process ended, in words: "exit code 1", "signal SIGKILL"."""
    if returncode is None:
        return "still running"
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
