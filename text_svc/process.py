"""One model's process, seen from the front: start, forward calls, notice its end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import grpc

from ml import transformers_pb2_grpc
from shared.channels import connect
from shared.errors import (
    InternalError,
    InvalidArgumentError,
    InvalidModelError,
    OutOfMemoryError,
    ServiceError,
    WorkerUnavailableError,
)
from shared.interceptors import STATUS_DETAILS_KEY
from shared.process import exit_text
from shared.tracing import outgoing_metadata
from text_svc.children import end_process, read_to_end, worker_environment
from text_svc.launch import Launch, Report

log = logging.getLogger(__name__)

# Errors that a worker may report; anything else is a fault of ours.
_REPORTED: dict[str, type[ServiceError]] = {
    kind.reason: kind for kind in (InvalidModelError, InvalidArgumentError, OutOfMemoryError)
}


class ModelProcess:
    """A running `python -m text_svc.worker`. Make it with `start`."""

    def __init__(self, launch: Launch, process: asyncio.subprocess.Process, report: Report) -> None:
        self.launch = launch
        self.report = report
        self._process = process
        self._channel = connect(f"unix:{launch.socket}")
        self._stub = transformers_pb2_grpc.TransformersServiceStub(self._channel)

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, make_launch: Callable[[int], Launch], timeout: float) -> ModelProcess:
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
        except BaseException:
            await end_process(process)
            raise
        return cls(launch, process, report)

    async def stream(
        self, method: str, request: Any, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        """Forwards a call whose answer is a stream.

        Raises:
            WorkerUnavailableError: the process has ended, or was stopped meanwhile.
            grpc.aio.AioRpcError: the worker's own status.
        """
        call = self._call(method, request, timeout)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None
        except asyncio.CancelledError:
            raise self._cut_off() from None
        finally:
            call.cancel()

    async def unary(self, method: str, request: Any, timeout: float | None) -> Any:
        """Forwards a call with one answer. Raises what `stream` does."""
        call = self._call(method, request, timeout)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None
        except asyncio.CancelledError:
            raise self._cut_off() from None
        finally:
            call.cancel()

    async def wait(self) -> str:
        """Waits for the end of the process and says how it ended."""
        return exit_text(await self._process.wait())

    async def stop(self) -> None:
        """Ends the process and the channel to it."""
        await self._channel.close()
        await end_process(self._process)
        for figures in self.launch.socket.parent.glob(f"*_{self.pid}.db"):
            figures.unlink(missing_ok=True)

    def _call(self, method: str, request: Any, timeout: float | None) -> Any:
        return getattr(self._stub, method)(request, timeout=timeout, metadata=outgoing_metadata())

    def _cut_off(self) -> BaseException:
        """What a cancelled call means: our caller went away, or `stop` closed the channel."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return asyncio.CancelledError()
        return WorkerUnavailableError(
            f"model {self.launch.model_id} was unloaded, or its process ended, during the call"
        )

    def _translated(self, error: grpc.aio.AioRpcError) -> Exception:
        own = any(key == STATUS_DETAILS_KEY for key, _ in error.trailing_metadata() or ())
        if error.code() is grpc.StatusCode.UNAVAILABLE and not own:
            return WorkerUnavailableError(
                f"the process of model {self.launch.model_id} has ended; the model is loaded "
                "again by LoadModel"
            )
        return error


async def _read_report(
    fd: int, process: asyncio.subprocess.Process, launch: Launch, timeout: float
) -> Report:
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
    report = Report.model_validate_json(text)
    if report.error:
        raise _REPORTED.get(report.error_reason, InternalError)(report.error)
    return report


def socket_path(folder: Path, number: int) -> Path:
    """The Unix socket of a worker; short, since the kernel takes 107 bytes."""
    return folder / f"{number}.sock"
