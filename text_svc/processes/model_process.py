"""One model's process, as the front sees it: starts it, forwards calls, notices its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

from shared.errors import ServiceError, WorkerUnavailableError
from shared.telemetry.tracing import outgoing_metadata
from text_svc.link.call import Payload
from text_svc.link.client import Link
from text_svc.processes.spawn import Child, spawn
from text_svc.processes.specs import WorkerReport, WorkerSpec


class ModelProcess:
    """A running `python -m text_svc.worker`. Make it with `start`."""

    def __init__(self, spec: WorkerSpec, child: Child, report: WorkerReport) -> None:
        self.spec = spec
        self.report = report
        self._child = child
        self._stopped = False
        self._link: Link

    @property
    def pid(self) -> int:
        return self._child.pid

    @classmethod
    async def start(cls, spec: WorkerSpec, timeout: float) -> ModelProcess:
        """Starts a worker and waits until it serves.

        Args:
            spec: what it loads.
            timeout: seconds that it may take to load it.

        Raises:
            ServiceError: why the model cannot be loaded, as the worker reports it.
            InternalError: the process ended, or was not ready in time.
        """
        child = await spawn(
            "text_svc.worker",
            spec,
            threads=spec.threads,
            environment={"PROMETHEUS_MULTIPROC_DIR": str(spec.socket.parent)},
        )
        try:
            report = await child.report(WorkerReport, f"loading model {spec.model_id}", timeout)
            started = cls(spec, child, report)
            started._link = await Link.connect(spec.socket, started._gone)
        except BaseException:
            await child.end()
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
            WorkerUnavailableError: the process has ended, or was stopped during the call.
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
        return await self._child.wait()

    async def stop(self) -> None:
        """Ends the calls and the process."""
        self._stopped = True
        self._link.close()
        await self._child.end()
        for figures in self.spec.socket.parent.glob(f"*_{self.pid}.db"):
            figures.unlink(missing_ok=True)

    def _gone(self) -> ServiceError:
        model_id = self.spec.model_id
        if self._stopped:
            return WorkerUnavailableError(
                f"model {model_id} was unloaded, or its process ended, during the call"
            )
        return WorkerUnavailableError(
            f"the process of model {model_id} has ended; retry once the model has been loaded "
            "again, or call LoadModel to load it now"
        )


def socket_path(folder: Path, number: int) -> Path:
    """The Unix socket of a worker; short, since the kernel takes 107 bytes."""
    return folder / f"{number}.sock"
