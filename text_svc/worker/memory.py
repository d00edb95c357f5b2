"""The memory of a model that changes with its work, and what gives it back when there is none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from shared.process import exit_if_out_of_memory
from text_svc.processes.native_memory import trim

log = logging.getLogger(__name__)

# Time between two looks whether the model is idle.
LOOK_SECONDS = 1.0


class WorkingMemory(Protocol):
    """What a model holds besides its weights, as far as it can be told and given back.

    Attributes:
        cache_bytes: what its key-value cache has taken so far.
        cache_limit_bytes: the most that this can become; 0 if it has no such cache of its own.
    """

    @property
    def cache_bytes(self) -> int: ...

    @property
    def cache_limit_bytes(self) -> int: ...

    async def give_back(self) -> None:
        """Gives back what an idle model does not need. Calls that come meanwhile wait, not long."""


class NoCache:
    """The `WorkingMemory` of a model whose work leaves nothing behind."""

    cache_bytes = 0
    cache_limit_bytes = 0

    async def give_back(self) -> None:
        """Nothing to do."""


async def give_back(memory: WorkingMemory) -> None:
    """Gives back what the model does not need now, and what the allocator has kept of it."""
    await memory.give_back()
    await asyncio.to_thread(trim)


async def give_back_when_idle(
    memory: WorkingMemory, idle_seconds: Callable[[], float], after_seconds: float
) -> None:
    """Gives back once in each time without calls. Never returns.

    Args:
        memory: of the model.
        idle_seconds: tells for how long there have been no calls; 0 while there are.
        after_seconds: the time without calls.
    """
    done = True  # after the load, which gives back itself
    while True:
        await asyncio.sleep(min(LOOK_SECONDS, after_seconds))
        idle = idle_seconds()
        if idle < after_seconds:
            done = False
        elif not done:
            done = True
            try:
                await give_back(memory)
            except Exception as error:
                exit_if_out_of_memory(error)
                log.exception("memory could not be given back")
