"""Runs one model: loads it, serves it on a Unix socket, reports once."""

from __future__ import annotations

import asyncio
import os
import sys

from shared.errors import ServiceError
from shared.process import die_with_parent
from shared.telemetry import (
    logs,
    tracing,
)
from text_svc.link.server import listen
from text_svc.processes.launch import (
    WorkerReport,
    WorkerSpec,
)
from text_svc.worker.pipelines import load


def _report(launch: WorkerSpec, report: WorkerReport) -> None:
    with os.fdopen(launch.report_fd, "w") as pipe:
        pipe.write(report.model_dump_json())


async def serve(launch: WorkerSpec) -> None:
    """Loads, serves and reports; returns never, the front ends this process."""
    loaded = await asyncio.to_thread(load, launch)
    server = await listen(
        loaded.handlers, launch.socket, max_message_bytes=launch.max_message_bytes
    )
    _report(launch, loaded.report)
    await server.serve_forever()


def main() -> None:
    """Entry point; the one argument is a `WorkerSpec` as JSON."""
    launch = WorkerSpec.model_validate_json(sys.argv[1])
    die_with_parent(launch.parent_pid)
    logs.configure(f"text_svc.worker {launch.model_id}", launch.log_level, launch.log_style)
    tracing.configure("text_svc.worker", {"model": launch.model_id})
    try:
        asyncio.run(serve(launch))
    except ServiceError as error:
        _report(launch, WorkerReport(error_reason=error.reason, error=error.message))
        sys.exit(1)


if __name__ == "__main__":
    main()
