"""Tracebacks of a process that hangs: it writes them itself when a signal comes.

faulthandler writes from within the signal handler, so neither the event loop nor Python's lock has
to be free.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

# The environment variable that names the folder of these files.
FOLDER = "ML_TRACEBACKS_DIR"
# How long a process may take to write, on a busy machine.
WRITE_SECONDS = 5.0
# What has not grown for this long is complete: threads are written one after the other.
QUIET_SECONDS = 0.3
# Bytes of tracebacks that are worth a place in a log.
MAX_BYTES = 16 << 10


def write_tracebacks_on_signal() -> None:
    """Makes this process write its tracebacks on SIGUSR1; does nothing where no folder is named."""
    if folder := os.environ.get(FOLDER):
        file = _path(Path(folder), os.getpid()).open("w")  # faulthandler keeps it open
        faulthandler.register(signal.SIGUSR1, file=file)


async def read_tracebacks(folder: Path, pids: Sequence[int]) -> str:
    """Asks processes for their tracebacks and returns what they write, each after its number.

    A stopped process is continued for it, and one that does not write is named: end them all
    afterwards.
    """
    files = {pid: _path(folder, pid) for pid in pids}
    for pid, path in files.items():
        if path.exists():  # else the signal would end it
            for signum in (signal.SIGUSR1, signal.SIGCONT):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WRITE_SECONDS):
            before = -1
            while not all(map(_written, files.values())) or _size(files) != before:
                before = _size(files)
                await asyncio.sleep(QUIET_SECONDS)
    texts = [await asyncio.to_thread(_text, path) for path in files.values()]
    return "\n".join(f"process {pid}:\n{text}" for pid, text in zip(files, texts, strict=True))


def _path(folder: Path, pid: int) -> Path:
    return folder / str(pid)


def _size(files: Mapping[int, Path]) -> int:
    return sum(path.stat().st_size for path in files.values() if path.exists())


def _written(path: Path) -> bool:
    return not path.exists() or path.stat().st_size > 0


def _text(path: Path) -> str:
    """The beginning of a file: whatever has come over the process can write any amount into it."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode(errors="replace")
    except FileNotFoundError:
        text = ""
    return text or "it wrote no tracebacks\n"
