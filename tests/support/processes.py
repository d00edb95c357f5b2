"""Services as processes, and ports for them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from pathlib import Path
from typing import IO

import grpc

from stack.ports import Ports, choose_ports, is_free

ROOT = Path(__file__).resolve().parents[2]

# Each worker of pytest-xdist has ports of its own, below those of `--base-port auto`: a port that a
# test was given, and does not listen on yet, is not given to a test beside it. A run begins at a
# random one, so that two runs on one machine seldom take the same.
_COUNT, _WORKERS = 1200, 8
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_ports = range(10_000 + _COUNT * _worker, 10_000 + _COUNT * (_worker + 1))
_next = itertools.count(secrets.randbelow(_COUNT))


def free_port() -> int:
    """A port without a listener, outside the outgoing range, and not given to another test."""
    return _free_row(1)


def stack_ports() -> Ports:
    """Such ports for a stack, in a row."""
    return choose_ports(str(_free_row(len(fields(Ports)))), None)


def _free_row(count: int) -> int:
    """The first of some free ports in a row."""
    row: list[int] = []
    for step in itertools.islice(_next, 2 * _COUNT):
        port = _ports[step % _COUNT]
        if not is_free(port):
            row = []
        elif row and port == row[-1] + 1:
            row.append(port)
        else:
            row = [port]
        if len(row) == count:
            return row[0]
    raise AssertionError(f"there are no {count} free ports in a row in {_ports}")


@contextlib.contextmanager
def process(
    *args: str, env: dict[str, str], output: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process (`python *args`) in a group of its own, which is gone afterwards."""
    child = subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        env=os.environ | env,
        stdout=output,
        stderr=output,
        start_new_session=True,
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
