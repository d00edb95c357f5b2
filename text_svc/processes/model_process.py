"""One model's process, seen from the front: start, forward calls, notice its end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

from shared.errors import (
    InternalError,
    InvalidArgumentError,
    InvalidModelError,
    OutOfMemoryError,
    ResourceExhaustedError,
    ServiceError,
    WorkerUnavailableError,
)
from shared.process import exit_text
from shared.telemetry.tracing import outgoing_metadata
from text_svc.link.call import Payload
from text_svc.link.client import Link
from text_svc.processes.launch import (
    WorkerReport,
    WorkerSpec,
)
from text_svc.processes.spawn import (
    end_process,
    read_to_end,
    worker_environment,
)

log = logging.getLogger(__name__)

# Errors that a worker may report; anything else is a fault of ours.
_REPORTED: dict[str, type[ServiceError]] = {
    kind.reason: kind
    for kind in (InvalidModelError, InvalidArgumentError, OutOfMemoryError, ResourceExhaustedError)
}


class ModelProcess:
    """A running `python -m text_svc.worker`. Make it with `start`."""

    def __init__(
        self, launch: WorkerSpec, process: asyncio.subprocess.Process, report: WorkerReport
    ) -> None:
        self.launch = launch
        self.report = report
        self._process = process
        self._stopped = False
        self._link: Link

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, make_launch: Callable[[int], WorkerSpec], timeout: float) -> ModelProcess:
        """Starts a worker and waits until it serves.

        Args:
            make_launch: the command, given the file descriptor for the report.
            timeout: seconds that the worker has.

        Raises:
            InvalidModelError: the files cannot be loaded.
            InternalError: the process ended, or was not ready in time.
        """
        read_fd, write_fd = os.pipe()
        try:
            launch = make_launch(write_fd)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "text_svc.worker", launch.model_dump_json()),
                pass_fds=(write_fd,),
                stdin=asyncio.subprocess.DEVNULL,
                env=worker_environment(launch.threads)
                | {"PROMETHEUS_MULTIPROC_DIR": str(launch.socket.parent)},
            )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        try:
            report = await _read_report(read_fd, process, launch, timeout)
            started = cls(launch, process, report)
            started._link = await Link.connect(launch.socket, started._gone)
        except BaseException:
            await end_process(process)
            raise
        return started

    def stream(
        self, method: str, requests: bytes | AsyncIterator[bytes], timeout: float | None
    ) -> AsyncGenerator[Payload, None]:
        """Forwards a call; yields its responses. Closing the generator cancels the call.

        Args:
            method: name of an RPC of TransformersService.
            requests: the one request, or a stream of them, serialised.
            timeout: seconds that the call may take; None is no limit.

        Raises:
            ServiceError: as the process raised it.
            WorkerUnavailableError: the process has ended, or was stopped meanwhile.
            TimeoutError: the call took too long.
        """
        metadata = dict(outgoing_metadata())
        return self._link.call(method, requests, metadata=metadata, timeout=timeout)

    async def unary(self, method: str, request: bytes, timeout: float | None) -> Payload:
        """Forwards a call with one response. Raises what `stream` does."""
        async with aclosing(self.stream(method, request, timeout)) as responses:
            return await anext(responses)

    async def wait(self) -> str:
        """Waits for the end of the process and says how it ended."""
        return exit_text(await self._process.wait())

    async def stop(self) -> None:
        """Ends the calls and the process."""
        self._stopped = True
        self._link.close()
        await end_process(self._process)
        for figures in self.launch.socket.parent.glob(f"*_{self.pid}.db"):
            figures.unlink(missing_ok=True)

    def _gone(self) -> ServiceError:
        model_id = self.launch.model_id
        if self._stopped:
            return WorkerUnavailableError(
                f"model {model_id} was unloaded, or its process ended, during the call"
            )
        return WorkerUnavailableError(
            f"the process of model {model_id} has ended; the model is loaded again by LoadModel"
        )


async def _read_report(
    fd: int, process: asyncio.subprocess.Process, launch: WorkerSpec, timeout: float
) -> WorkerReport:
    try:
        async with asyncio.timeout(timeout):
            text = await read_to_end(fd)  # the worker closes it after its report
            if not text:
                ended = exit_text(await process.wait())
                raise InternalError(
                    f"the process of model {launch.model_id} ended while loading: {ended}"
                )
    except TimeoutError:
        raise InternalError(f"model {launch.model_id} was not ready within {timeout:g} s") from None
    report = WorkerReport.model_validate_json(text)
    if report.error:
        raise _REPORTED.get(report.error_reason, InternalError)(report.error)
    return report


def socket_path(folder: Path, number: int) -> Path:
    """The Unix socket of a worker; short, since the kernel takes 107 bytes."""
    return folder / f"{number}.sock"
