"""One model of this service: its state, its figures and its process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from shared.model_host import HOST, HostedModel, ModelState
from shared.model_ids import ModelId, at_revision, with_file
from text_svc.options import LoadOptions
from text_svc.processes.model_process import ModelProcess
from text_svc.processes.specs import EngineName


@dataclass(kw_only=True, eq=False)
class ManagedModel(HostedModel):
    """One model and its process. Only the registry and the loader change it.

    Attributes:
        again: its process died, and this loads it again.
        task: its load.
        ending: its unload.
        waiters: callers that wait for the load.
        abandoning: ends the load, unless a caller comes back for it in time.
        idle: set when it answers no calls.
        closed: while above 0, it takes no calls although it is READY.
        seconds: that the parts of its load took, by name.
    """

    options: LoadOptions
    again: bool = False
    engine: EngineName | None = None
    process: ModelProcess | None = None
    task: asyncio.Task[None] | None = None
    ending: asyncio.Task[None] | None = None
    waiters: int = 0
    abandoning: asyncio.Task[None] | None = None
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    closed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Notes how long a part of its load takes."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 3)

    @property
    def reserved_bytes(self) -> int:
        """Its share of the budget of host memory."""
        return self.reserved.get(HOST, 0)

    @property
    def in_demand(self) -> bool:
        """Whether it answers calls, or is being loaded."""
        if self.state is ModelState.READY:
            return self.calls > 0
        return self.state not in (ModelState.UNLOADING, ModelState.FAILED)

    @property
    def files_id(self) -> ModelId:
        """The id of its files, see `shared.model_ids.at_revision`."""
        source = at_revision(self.model_id, self.options.revision or "")
        return with_file(source, self.options.weights)

    @property
    def has_died(self) -> bool:
        """Whether it was ready and its process ended; true until it is ready again."""
        return self.again or (self.state is ModelState.FAILED and self.loaded_at > 0)
