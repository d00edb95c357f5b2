"""One model of this service: its state, its figures, its process."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field

from shared.pipelines import Pipeline
from text_svc.options import LoadOptions
from text_svc.processes.launch import Engine
from text_svc.processes.model_process import ModelProcess


class State(enum.Enum):
    """Where a model is in its life."""

    FETCHING = "fetching"
    CONVERTING = "converting"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass
class Model:
    """One model and its process. The registry and its loader change it."""

    model_id: str
    pipeline: Pipeline
    options: LoadOptions
    raw_options: dict[str, str]
    state: State = State.FETCHING
    bytes_fetched: int = 0
    bytes_total: int = 0
    ram_bytes: int = 0
    vram_bytes: int = 0
    reserved_bytes: int = 0
    loaded_at: int = 0
    reason: str = ""
    engine: Engine | None = None
    note: str = ""
    process: ModelProcess | None = None
    # Its load, and its end.
    task: asyncio.Task[None] | None = None
    ending: asyncio.Task[None] | None = None
    waiters: int = 0
    calls: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
