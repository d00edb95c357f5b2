"""The process of one model: loads it, tries it, reports once, and answers on a Unix socket."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from ml.internal.link_pb2 import MemoryFigures
from shared.errors import ServiceError
from shared.process import exit_if_out_of_memory
from shared.telemetry import tracing
from text_svc.formats.cleaned import links_in
from text_svc.formats.load_errors import loading_errors
from text_svc.link.server import Activity, listen
from text_svc.processes import helpers
from text_svc.processes.child import begin
from text_svc.processes.forking import is_forked
from text_svc.processes.specs import (
    WorkerReport,
    WorkerSpec,
)
from text_svc.processes.tracebacks import write_tracebacks_on_signal
from text_svc.worker.light_imports import import_torch
from text_svc.worker.memory import give_back, give_back_when_idle
from text_svc.worker.pipelines import helpers_of, load
from text_svc.worker.steps import look_at_all
from text_svc.worker.trial import try_calls


async def serve(spec: WorkerSpec) -> None:
    """Loads, tries and serves the model, then reports ready.

    Never returns; the front ends the process.
    """
    asyncio.get_running_loop().set_exception_handler(_on_loop_error)
    began = time.monotonic()
    loaded = await asyncio.to_thread(load, spec)
    read = time.monotonic()
    await asyncio.to_thread(helpers.end_waiting)
    if spec.trial_seconds:
        with loading_errors(spec.model_id, spec.folder, links_in(spec.scratch)):
            await try_calls(spec.model_id, loaded.handlers, loaded.trial, spec.trial_seconds)
    tried = time.monotonic()
    memory, activity = loaded.memory, Activity()
    server = await listen(
        loaded.handlers,
        spec.socket,
        max_message_bytes=spec.max_message_bytes,
        stuck=look_at_all,
        memory=lambda: MemoryFigures(
            cache_bytes=memory.cache_bytes, cache_limit_bytes=memory.cache_limit_bytes
        ),
        activity=activity,
    )
    await give_back(memory)  # what the load and the trial have left
    seconds = {
        "reading": read - began,
        "trial": tried - read,
        "giving back": time.monotonic() - tried,
    }
    rounded = {part: round(each, 3) for part, each in seconds.items()}
    spec.send(loaded.report.model_copy(update={"seconds": rounded}))
    if spec.give_back_seconds:
        await give_back_when_idle(memory, activity.idle_seconds, spec.give_back_seconds)
    await server.serve_forever()


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody waits for has failed; the call that it belonged to may wait for ever."""
    if error := context.get("exception"):
        exit_if_out_of_memory(error)
    loop.default_exception_handler(context)


def main() -> None:
    """Entry point; the one argument is a `WorkerSpec` as JSON."""
    spec = begin(WorkerSpec, "text_svc.worker")
    if is_forked():
        helpers.prefork(helpers_of(spec))
    write_tracebacks_on_signal()
    tracing.configure("text_svc.worker", {"model": spec.model_id})
    if spec.engine == "transformers":
        import_torch()
    try:
        asyncio.run(serve(spec))
    except ServiceError as error:
        spec.send(WorkerReport(error_reason=error.reason, error=error.message))
        sys.exit(1)


if __name__ == "__main__":
    main()
