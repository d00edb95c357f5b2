"""Starts children of the front without the time that their imports take.

An interpreter with the libraries of a model's process takes over half a second to start, and a load
needs several. So one process imports them, once, and forks itself for each child. It runs no code
of a model and reads none of its files. A child takes on its limits and its sandbox after the fork,
as every other does (`child.begin`), and its parent is the front: see `forking`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from text_svc.processes import forking
from text_svc.processes.fork_server_process import ANSWER, MAX_REQUEST_BYTES, ROOM

log = logging.getLogger(__name__)

_PROCESS = "text_svc.processes.fork_server_process"
# For a fork, with the imports before the first one, on a busy machine.
FORK_SECONDS = 120.0


class ForkedProcess:
    """A child of this process that another one has forked; used as `asyncio.subprocess.Process`.

    Attributes:
        returncode: how it ended; None while it runs.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._descriptor = os.pidfd_open(pid)
        self._loop.add_reader(self._descriptor, self._on_end)

    async def wait(self) -> int:
        """Waits for its end."""
        code: int = await asyncio.shield(self._ended)
        return code

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        if self.returncode is None:  # its number is not given to another one before `waitpid`
            os.kill(self.pid, signum)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set_result(self.returncode)


class ForkServer:
    """The process that forks, as the front sees it. Used on the event loop; close it after use.

    Where it cannot be had, or has ended, `fork` returns None, and the caller starts an interpreter.
    One that has served is started again.

    Args:
        environment: of the process. Children get one of their own.

    Attributes:
        served: how many children it has forked.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # NumPy's threads would be there before the fork.
        self._environment = {**environment, "OPENBLAS_NUM_THREADS": "1"}
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._usable = forking.supported()
        self._turn = asyncio.Lock()
        self.served = 0

    async def start(self, folder: Path) -> None:
        """Starts the process, which then imports; `fork` waits for it.

        Args:
            folder: is made, for the files of its metrics, which nobody reads.
        """
        await asyncio.to_thread(folder.mkdir, mode=0o700, exist_ok=True)
        # Metrics are in files if this is set when they are made; after a fork, in new ones.
        self._environment["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        await self._start()

    async def _start(self) -> None:
        if not self._usable or self._socket:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", _PROCESS, str(os.getpid()), ROOM),
                stdin=theirs.fileno(),
                env=self._environment,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._socket, self._usable = ours, False  # until it has answered

    async def fork(
        self, module: str, spec: str, environment: Mapping[str, str], report_fd: int, stderr_fd: int
    ) -> ForkedProcess | None:
        """A child that runs `python -m MODULE SPEC`; None where there can be none.

        Args:
            module: one that begins with `child.begin`.
            spec: its argument; the number of the descriptor for its report is filled in.
            environment: of the child, whole.
            report_fd: where its report goes; the caller closes its own.
            stderr_fd: the same of its stderr.
        """
        request = {"module": module, "spec": spec, "environment": dict(environment)}
        data = json.dumps(request).encode()
        if len(data) > MAX_REQUEST_BYTES // 2:  # the kernel's limit for one message
            return None
        # A caller that is cancelled closes its own.
        descriptors = [os.dup(report_fd), os.dup(stderr_fd)]
        exchange = asyncio.ensure_future(self._exchange(data, descriptors))
        try:
            return await asyncio.shield(exchange)
        except asyncio.CancelledError:
            exchange.add_done_callback(_kill)
            raise

    async def aclose(self) -> None:
        """Ends the process. Children that it has forked go on."""
        self._usable = False
        await self._end()

    async def _exchange(self, data: bytes, descriptors: list[int]) -> ForkedProcess | None:
        try:
            async with self._turn:
                await self._start()
                if self._socket is None:
                    return None
                return await self._ask(self._socket, data, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def _ask(
        self, requests: socket.socket, data: bytes, descriptors: list[int]
    ) -> ForkedProcess | None:
        try:
            socket.send_fds(requests, [data], descriptors)
            async with asyncio.timeout(FORK_SECONDS):
                answer = await asyncio.get_running_loop().sock_recv(requests, ANSWER.size)
        except OSError:  # a timeout too
            answer = b""
        if not answer:
            log.warning("the fork server has ended or hangs; children are started without it")
            await self._end()
            return None
        (pid,) = ANSWER.unpack(answer)
        if pid < 0:
            log.warning("the fork server cannot fork", extra={"error": os.strerror(-pid)})
            return None
        self._usable = True
        self.served += 1
        try:
            return ForkedProcess(pid)
        except OSError:  # this process has no descriptor left
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(os.waitpid, pid, 0)
            raise

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._socket:  # last, so that whoever reads from it finds its end
            self._socket.close()
            self._socket = None


def _kill(exchange: asyncio.Future[ForkedProcess | None]) -> None:
    """Ends a child that nobody waits for any more."""
    if not exchange.cancelled() and not exchange.exception() and (child := exchange.result()):
        child.kill()
