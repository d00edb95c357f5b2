"""One model's process, as the front sees it: starts it, forwards calls, notices its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import OutOfMemoryError, ServiceError, WorkerUnavailableError
from shared.telemetry.process_metrics import process_tree, proportional_bytes
from shared.telemetry.tracing import outgoing_metadata
from text_svc.link.call import Payload
from text_svc.link.client import Link
from text_svc.processes.fork_server import ForkServer
from text_svc.processes.heartbeat import until_hung
from text_svc.processes.load_share import LoadShare
from text_svc.processes.memory import limit_error
from text_svc.processes.spawn import Child, spawn
from text_svc.processes.specs import WorkerReport, WorkerSpec
from text_svc.processes.tracebacks import FOLDER, read_tracebacks

log = logging.getLogger(__name__)

# From the end of the connection to the end of the process, which frees its memory first.
END_SECONDS = 5.0
# Memory is not measured again before this time and so many times the CPU time that it took: the
# kernel walks through all pages, and a large model has many.
MEASURE_SECONDS = 1.0
MEASURE_COST = 100
# A process that does not tell its figures in this time, as at a long step, has those before.
TELL_SECONDS = 0.5


@dataclass(frozen=True)
class ProcessMemory:
    """What a model's processes hold, in bytes.

    Attributes:
        held_bytes: host memory; pages that processes share count in parts (PSS).
        cache_bytes: what the key-value cache has taken so far.
        cache_limit_bytes: the most that this can become.
    """

    held_bytes: int = 0
    cache_bytes: int = 0
    cache_limit_bytes: int = 0


class ModelProcess:
    """A running `python -m text_svc.worker`. Make it with `start`.

    Attributes:
        hung: what it did not do, if it was ended because it hung; else empty.
    """

    def __init__(self, spec: WorkerSpec, child: Child, report: WorkerReport) -> None:
        self.spec = spec
        self.report = report
        self._child = child
        self.hung = ""
        self._stopped = self._out_of_memory = False
        self._memory = ProcessMemory()
        self._measure_after = 0.0
        self._link: Link
        self._heartbeat: asyncio.Task[None]

    @property
    def pid(self) -> int:
        return self._child.pid

    @classmethod
    async def start(
        cls,
        spec: WorkerSpec,
        timeout: float,
        on_share: Callable[[float | None], None] = lambda _: None,
        forks: ForkServer | None = None,
    ) -> ModelProcess:
        """Starts a worker and waits until it serves.

        Args:
            spec: what it loads.
            timeout: seconds that it may take to load it.
            on_share: is told the share of the weights that was read, again and again.
            forks: see `spawn`.

        Raises:
            ServiceError: why the model cannot be loaded, as the worker reports it.
            InternalError: the process ended, or was not ready in time.
        """
        tracebacks = _tracebacks_folder(spec)
        await asyncio.to_thread(tracebacks.mkdir, parents=True)
        child = await spawn(
            "text_svc.worker",
            spec,
            threads=spec.threads,
            environment={
                "PROMETHEUS_MULTIPROC_DIR": str(spec.scratch),
                FOLDER: str(tracebacks),
            },
            forks=forks,
        )
        following = asyncio.create_task(_follow_share(spec, child.pid, on_share))
        try:
            report = await child.report(WorkerReport, f"loading model {spec.model_id}", timeout)
            started = cls(spec, child, report)
            started._link = await Link.connect(spec.socket, started._gone, started._learn_end)
        except BaseException:
            await child.end()
            raise
        finally:
            following.cancel()
        started._heartbeat = asyncio.create_task(started._end_when_hung())
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
            OutOfMemoryError: it has ended since it went over its limit of memory.
            TimeoutError: the call took too long.
        """
        metadata = dict(outgoing_metadata())
        return self._link.call(method, requests, metadata=metadata, timeout=timeout)

    async def unary(self, method: str, request: bytes, timeout: float | None) -> Payload:
        """Forwards a call with one response. Raises what `stream` does."""
        metadata = dict(outgoing_metadata())
        return await self._link.unary(method, request, metadata=metadata, timeout=timeout)

    async def memory(self) -> ProcessMemory:
        """What it holds now, or held when it was measured last, a second ago or a little more."""
        if time.monotonic() >= self._measure_after:
            self._measure_after = time.monotonic() + MEASURE_SECONDS
            held, seconds = await asyncio.to_thread(self._held)
            self._measure_after += seconds * MEASURE_COST
            told = self._memory.cache_bytes, self._memory.cache_limit_bytes
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TELL_SECONDS):
                    figures = await self._link.measure()
                    told = figures.cache_bytes, figures.cache_limit_bytes
            self._memory = ProcessMemory(held, *told)
        return self._memory

    def _held(self) -> tuple[int, float]:
        """Host memory of its processes, and the CPU time that it took to measure it."""
        began = time.thread_time()
        held = sum(map(proportional_bytes, process_tree(self.pid)))
        return held, time.thread_time() - began

    async def wait(self) -> str:
        """Waits for the end of the process and says how it ended."""
        how = await self._child.wait()
        self._out_of_memory = await self._child.out_of_memory()
        return self._over_limit("it").message if self._out_of_memory else how

    async def stop(self) -> None:
        """Ends the calls and the process."""
        self._stopped = True
        self._heartbeat.cancel()
        self._link.close()
        await self._child.end()

    async def _end_when_hung(self) -> None:
        """Ends the process once it hangs, its calls first, and logs its tracebacks."""
        spec = self.spec
        self.hung = await until_hung(self._link, self.pid, spec.hang_seconds, spec.max_step_seconds)
        self._link.abort()
        try:
            pids = await asyncio.to_thread(process_tree, self.pid)
            tracebacks = await read_tracebacks(_tracebacks_folder(spec), pids)
        finally:
            self._child.kill()
        log.error(
            "model process hangs and is ended",
            extra={
                "model": spec.model_id,
                "pid": self.pid,
                "how": self.hung,
                "tracebacks": tracebacks,
            },
        )

    async def _learn_end(self) -> None:
        """Waits, not for long, until it is known whether memory ended the process."""
        if self._stopped or self.hung:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                self._out_of_memory = await self._child.out_of_memory()

    def _over_limit(self, subject: str) -> OutOfMemoryError:
        return limit_error(subject, self.spec.memory_bytes)

    def _gone(self) -> ServiceError:
        model_id = self.spec.model_id
        if self._out_of_memory:
            return self._over_limit(f"model {model_id}")
        if self.hung:
            return WorkerUnavailableError(
                f"the process of model {model_id} hung and was ended: {self.hung}; the model is "
                "being loaded again"
            )
        if self._stopped:
            return WorkerUnavailableError(
                f"model {model_id} was unloaded, or its process ended, during the call"
            )
        return WorkerUnavailableError(
            f"the process of model {model_id} has ended; the model is being loaded again"
        )


async def _follow_share(
    spec: WorkerSpec, pid: int, on_share: Callable[[float | None], None]
) -> None:
    """Tells how much of the weights was read. A fault here must not end a load."""
    try:
        await LoadShare(spec.weights_in()).follow(pid, on_share)
    except OSError as error:
        log.info("the share of a load is not known", extra={"error": error.strerror})


def _tracebacks_folder(spec: WorkerSpec) -> Path:
    """Where the worker and its children write their tracebacks, see `tracebacks`."""
    return spec.scratch / "tracebacks"
