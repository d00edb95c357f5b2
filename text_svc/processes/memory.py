"""The memory limit of a child process: one that needs more ends, and its callers are told.

The kernel refuses a process what goes over its limit of writable memory (RLIMIT_DATA), which ends
a load or a call with an error, or the process. That limit counts for each process alone and does
not see shared memory, so the front also looks at what a child and the processes it has started hold
together, and ends the child above the limit. Where the machine itself runs out of memory, the
kernel ends a child before a service.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import threading
from pathlib import Path

from shared.errors import OutOfMemoryError
from shared.telemetry.process_metrics import private_bytes, process_tree, writable_bytes
from text_svc.formats.load_errors import MEMORY_WORDS

MIB = 1 << 20
# Time between two looks at a child's memory.
LOOK_SECONDS = 0.5
# Makes the kernel end a child before a service: from 0 to 1000 (proc(5), oom_score_adj).
OOM_SCORE = 500
# A library that does not look whether it got memory crashes. A crash is taken for that where the
# last look found more than this share of the limit in use.
CRASH_SHARE = 0.8
CRASHES = (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT)
# What is kept of the end of a process's stderr.
LAST_WORDS_BYTES = 2048


def limit_this_process(limit_bytes: int) -> None:
    """Limits the writable memory of this process and of each that it starts; 0 is no limit."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    if limit_bytes:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            limit_bytes = min(limit_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def limit_error(subject: str, limit_bytes: int) -> OutOfMemoryError:
    """The error of a process that went over its limit.

    Args:
        subject: what it did, such as "loading model org/name".
        limit_bytes: 0 where it has none, and the machine's memory was short.
    """
    if not limit_bytes:
        return OutOfMemoryError(f"{subject} took more memory than there is; its process has ended")
    return OutOfMemoryError(
        f"{subject} took more than the {limit_bytes // MIB} MiB that its process may take: its "
        "share of the memory budget and a margin (TEXT_MEMORY_MARGIN_MB)",
        metadata={"limit_bytes": str(limit_bytes)},
    )


class MemoryWatch:
    """Looks at what a process and those it has started hold together.

    Args:
        pid: of the process.
        limit_bytes: what they may hold.
    """

    def __init__(self, pid: int, limit_bytes: int) -> None:
        self._pid = pid
        self._limit_bytes = limit_bytes
        self._most_bytes = 0

    @property
    def near_limit(self) -> bool:
        """Whether the last look found so much that a crash is taken for a lack of memory."""
        return self._most_bytes > self._limit_bytes * CRASH_SHARE

    async def until_over(self) -> None:
        """Returns once they hold more than the limit."""
        held_bytes = 0
        while held_bytes <= self._limit_bytes:
            await asyncio.sleep(LOOK_SECONDS)
            held_bytes, counted = await asyncio.to_thread(self._look)
            # A process that has ended holds nothing: what it held before is what counts.
            self._most_bytes = max(held_bytes, counted) or self._most_bytes

    def _look(self) -> tuple[int, int]:
        """What they hold together, and the most that the kernel counts for one of them."""
        pids = process_tree(self._pid)
        return sum(map(private_bytes, pids)), max(map(writable_bytes, pids))


def oom_kills() -> int:
    """How many processes the kernel has ended so far because memory was short."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class LastWords:
    """Passes on what a process writes to stderr, and keeps the end of it.

    A library that cannot allocate often ends the process, and stderr is where it says why.
    """

    def __init__(self) -> None:
        self._read_fd, self.write_fd = os.pipe()
        self._text = b""
        self._thread = threading.Thread(target=self._copy, name="stderr", daemon=True)
        # Two wait at once where a process ends while it is ended, and a thread of Python 3.11 that
        # two join at once raises in one of them.
        self._ended = threading.Event()

    def start(self) -> None:
        """Begins to pass on, once the process has the other end."""
        os.close(self.write_fd)
        self._thread.start()

    def wait(self) -> None:
        """Waits, not for long, for the last of them: the processes that it started end after it."""
        self._ended.wait(1)

    def of_memory(self) -> bool:
        """Whether they are about memory. Call it after the end of the process; blocks shortly."""
        self.wait()
        text = self._text.decode(errors="replace")
        return any(words in text for words in MEMORY_WORDS)

    def _copy(self) -> None:
        try:
            with os.fdopen(self._read_fd, "rb", buffering=0) as pipe:
                while block := pipe.read(1 << 16):
                    self._text = (self._text + block)[-LAST_WORDS_BYTES:]
                    with contextlib.suppress(OSError):
                        os.write(sys.stderr.fileno(), block)
        finally:
            self._ended.set()
