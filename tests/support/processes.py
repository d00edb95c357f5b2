"""Services as processes, and ports for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc

from stack.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]


# Already given to a test, which may not listen on it yet.
_given: set[int] = set()


def free_port() -> int:
    """A port without a listener, outside the outgoing range, and not given to another test."""
    port = next(port for port in free_ports() if port not in _given)
    _given.add(port)
    return port


@contextlib.contextmanager
def process(*args: str, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process (`python *args`) in a group of its own, which is gone afterwards."""
    child = subprocess.Popen(
        [sys.executable, *args], cwd=ROOT, env=os.environ | env, start_new_session=True
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@contextlib.asynccontextmanager
async def ready_channel(address: str, seconds: float = 60.0) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that is starting, once it accepts calls."""
    async with grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 200),
        ],
    ) as channel:
        async with asyncio.timeout(seconds):
            await channel.channel_ready()
        yield channel


def rss_bytes(pid: int) -> int:
    """The resident memory of a process (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
