"""A model in memory, ready to answer calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from text_svc.link.server import Handlers
from text_svc.processes.specs import WorkerReport
from text_svc.worker.memory import WorkingMemory
from text_svc.worker.trial import Call


@dataclass(frozen=True)
class LoadedPipeline:
    """A model's handlers, its weights' sizes, the calls of its trial, and its `WorkingMemory`."""

    handlers: Handlers
    report: WorkerReport
    trial: Sequence[Call]
    memory: WorkingMemory
