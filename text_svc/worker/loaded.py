"""A model in memory, ready to answer calls."""

from __future__ import annotations

from dataclasses import dataclass

from text_svc.link.server import Handlers
from text_svc.processes.specs import WorkerReport


@dataclass(frozen=True)
class LoadedPipeline:
    """What answers a model's calls, and what the model was measured to cost."""

    handlers: Handlers
    report: WorkerReport
