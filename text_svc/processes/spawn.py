"""Starts child processes of the front: their environment, their one report, their end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from typing import Protocol, TypeVar

from shared.errors import (
    InternalError,
    InvalidArgumentError,
    InvalidModelError,
    OutOfMemoryError,
    ResourceExhaustedError,
    ServiceError,
)
from shared.process import OUT_OF_MEMORY_EXIT, exit_text
from text_svc.processes import sandbox
from text_svc.processes.fork_server import ForkServer
from text_svc.processes.memory import CRASHES, LastWords, MemoryWatch, limit_error, oom_kills
from text_svc.processes.specs import ChildSpec, Report

# Largest report of a child, which has a few numbers and a sentence.
MAX_REPORT_BYTES = 1 << 20
# Time between SIGTERM and SIGKILL for a process whose work is over.
TERMINATE_SECONDS = 3.0

# Errors that a child may report; anything else is a fault of this side.
_REPORTED: dict[str, type[ServiceError]] = {
    kind.reason: kind
    for kind in (InvalidModelError, InvalidArgumentError, OutOfMemoryError, ResourceExhaustedError)
}

AnyReport = TypeVar("AnyReport", bound=Report)


def child_environment(spec: ChildSpec, threads: int) -> dict[str, str]:
    """The environment of a child: that of its libraries, and its sandbox."""
    return library_environment(threads) | {
        sandbox.MODE_VARIABLE: spec.sandbox,
        # Nothing else can be written.
        "HOME": str(spec.scratch),
        "TMPDIR": str(spec.scratch),
    }


def library_environment(threads: int) -> dict[str, str]:
    """An environment for the libraries: no network for the hub, threads that do not spin."""
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


class _Process(Protocol):
    """What is used of `asyncio.subprocess.Process`."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Child:
    """A process made by `spawn`."""

    def __init__(
        self,
        process: _Process,
        report_fd: int,
        spec: ChildSpec,
        last_words: LastWords,
    ) -> None:
        self._process = process
        self._report_fd = report_fd
        self._scratch = spec.scratch
        self._limit = spec.memory_bytes
        self._last_words = last_words
        self._oom_kills = oom_kills()
        self._memory = MemoryWatch(process.pid, spec.memory_bytes)
        self._over_limit = self._killed = False
        self._watch = asyncio.create_task(self._end_over_limit())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def report(self, kind: type[AnyReport], task: str, timeout: float) -> AnyReport:
        """Waits for the report; call it once.

        Args:
            kind: the class of the report.
            task: what the process does, for messages: "loading model org/name".
            timeout: seconds that it may take.

        Raises:
            ServiceError: the one that the process reported.
            InternalError: it ended without a report, or took too long, or reported too much.
        """
        try:
            async with asyncio.timeout(timeout):
                text = await _read_to_end(self._report_fd)  # the child closes it
                if len(text) > MAX_REPORT_BYTES:
                    raise InternalError(
                        f"{task}: its process reported over {MAX_REPORT_BYTES} bytes"
                    )
                if not text:
                    how = await self.wait()
                    if await self.out_of_memory():
                        raise limit_error(task, self._limit)
                    raise InternalError(f"the process {task} ended: {how}")
        except TimeoutError:
            raise InternalError(f"{task} took longer than {timeout:g} s") from None
        report = kind.model_validate_json(text)
        if report.error:
            raise _REPORTED.get(report.error_reason, InternalError)(report.error)
        return report

    async def wait(self) -> str:
        """Waits for the end of the process and says how it ended."""
        return exit_text(await self._process.wait())

    async def out_of_memory(self) -> bool:
        """Waits for the end of the process and says whether it was for lack of memory."""
        code = await self._process.wait()
        if self._over_limit or code == OUT_OF_MEMORY_EXIT:
            return True
        if self._limit and code in CRASHES and self._memory.near_limit:
            return True
        if code == -signal.SIGKILL:  # by the kernel, when the machine's memory was short?
            return not self._killed and oom_kills() > self._oom_kills
        return code != 0 and await asyncio.to_thread(self._last_words.of_memory)

    def kill(self) -> None:
        """Sends SIGKILL."""
        if self._process.returncode is None:
            self._killed = True
            self._process.kill()

    async def end(self) -> None:
        """Sends SIGTERM, after `TERMINATE_SECONDS` SIGKILL; returns when the process is gone, and
        its scratch folder too."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(TERMINATE_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                self.kill()
        await self._process.wait()
        self._watch.cancel()
        await asyncio.to_thread(self._last_words.wait)
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    async def _end_over_limit(self) -> None:
        if self._limit:
            await self._memory.until_over()
            self._over_limit = True
            self.kill()


async def spawn(
    module: str,
    spec: ChildSpec,
    *,
    threads: int,
    environment: Mapping[str, str] | None = None,
    forks: ForkServer | None = None,
) -> Child:
    """Starts `python -m MODULE SPEC` with a pipe for its report.

    Args:
        module: its name.
        spec: the command; `parent_pid` and `report_fd` are filled in here.
        threads: of OpenMP.
        environment: variables besides those of `child_environment`.
        forks: forks it, if it can, for a module that it has imported.
    """
    read_fd, write_fd = os.pipe()
    last_words = LastWords()
    try:
        await asyncio.to_thread(spec.scratch.mkdir, mode=0o700, exist_ok=True)
        spec = spec.model_copy(update={"parent_pid": os.getpid(), "report_fd": write_fd})
        command = spec.model_dump_json()
        variables = child_environment(spec, threads) | dict(environment or {})
        process: _Process | None = None
        if forks:
            process = await forks.fork(module, command, variables, write_fd, last_words.write_fd)
        if process is None:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, command),
                pass_fds=(write_fd,),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=last_words.write_fd,
                env=variables,
            )
    except BaseException:
        os.close(read_fd)
        shutil.rmtree(spec.scratch, ignore_errors=True)  # it holds nothing yet
        raise
    finally:
        os.close(write_fd)
        last_words.start()
    return Child(process, read_fd, spec, last_words)


async def _read_to_end(fd: int) -> bytes:
    """The bytes of a pipe until its other end is closed, or are too many; closes `fd`."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb")
    )
    try:
        text = b""
        while len(text) <= MAX_REPORT_BYTES and (block := await reader.read(1 << 16)):
            text += block
        return text
    finally:
        transport.close()
