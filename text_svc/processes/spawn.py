"""Processes that the front starts: their environment, their one report, their end."""

from __future__ import annotations

import asyncio
import os

# Time between SIGTERM and SIGKILL for a process whose work is over.
TERMINATE_SECONDS = 3.0


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of a child: no network for the hub, and threads that do not spin."""
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Spinning OpenMP threads on shared cores cost a factor of ten.
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(threads),
    }


async def read_to_end(fd: int) -> bytes:
    """All bytes of a pipe until its other end is closed; closes `fd`."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb")
    )
    try:
        return await reader.read()
    finally:
        transport.close()


async def end_process(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, a short wait, SIGKILL; returns when the process is gone."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(TERMINATE_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()
