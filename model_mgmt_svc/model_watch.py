"""Tells watchers of models what has changed, each from where it stands."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from model_mgmt_svc.status import ModelStates, ModelStatus
from shared.model_ids import ModelId

log = logging.getLogger(__name__)

# Time between two looks at the replicas while somebody watches: a replica reports the progress of
# a load as often.
LOOK_SECONDS = 0.25
# How many ids of models that are gone are remembered, for watchers that come back.
MAX_GONE = 1000


@dataclass(frozen=True)
class Changes:
    """What has changed up to `sequence`.

    Attributes:
        complete: `models` are all that there are.
    """

    sequence: int
    models: Sequence[ModelStatus] = ()
    removed: Sequence[ModelId] = ()
    complete: bool = False


class ModelWatch:
    """Looks at the states of all models while somebody watches, and gives each change a sequence.

    One look serves all watchers. A watcher is told what has changed since what it was told last, so
    that a slow one costs nothing and misses no newest state.

    Args:
        states: what is looked at.
        look_seconds: time between two looks.
    """

    def __init__(self, states: ModelStates, look_seconds: float = LOOK_SECONDS) -> None:
        self._states = states
        self._look_seconds = look_seconds
        # At the last look; the sequence of each one's newest change; and of the end of those gone.
        self._statuses: dict[ModelId, ModelStatus] = {}
        self._changes: dict[ModelId, int] = {}
        self._gone: dict[ModelId, int] = {}
        # In microseconds, so that sequences go on rising when the service restarts, and those of
        # the process before count as forgotten: from which one on everything is known.
        self._sequence = self._forgotten = time.time_ns() // 1000
        self._looking = asyncio.Lock()
        self._looks = 0
        self._changed = asyncio.Condition()
        self._watchers = 0
        self._looker: asyncio.Task[None] | None = None

    async def now(self) -> Changes:
        """All models, as they are now."""
        await self._look()
        return self._since(0)

    async def changes(self, after: int = 0) -> AsyncGenerator[Changes]:
        """What has changed since the sequence `after`, at once, and then whenever something does.

        The first one is complete unless `after` is a sequence of this process, so that nothing is
        missing in between.
        """
        with self._watcher():
            await self._look()
            while True:
                changes = self._since(after)
                yield changes
                after = changes.sequence
                async with self._changed:
                    while self._sequence == after:
                        await self._changed.wait()

    @contextlib.contextmanager
    def _watcher(self) -> Iterator[None]:
        self._watchers += 1
        if self._looker is None:
            self._looker = asyncio.create_task(self._keep_looking())
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers and self._looker:
                self._looker.cancel()
                self._looker = None

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            try:
                await self._look()
            except Exception:
                log.exception("the states of models cannot be read")

    async def _look(self) -> None:
        """Compares all models with the last look; callers at the same time share the next one."""
        wanted = self._looks + 1
        async with self._looking:
            if self._looks >= wanted:
                return
            self._looks = wanted
            try:
                statuses = await self._states.all()
            except BaseException:
                self._looks -= 1  # whoever waits looks itself
                raise
            self._take(statuses)
        async with self._changed:
            self._changed.notify_all()

    def _take(self, statuses: dict[ModelId, ModelStatus]) -> None:
        seen = self._statuses
        changed = [
            key for key, each in statuses.items() if key not in seen or each.differs(seen[key])
        ]
        gone = seen.keys() - statuses.keys()
        if changed or gone:
            self._sequence += 1
        for model_id in changed:
            self._changes[model_id] = self._sequence
            self._gone.pop(model_id, None)
        for model_id in gone:
            del self._changes[model_id]
            self._gone[model_id] = self._sequence
        while len(self._gone) > MAX_GONE:
            self._forgotten = self._gone.pop(next(iter(self._gone)))
        self._statuses = statuses

    def _since(self, after: int) -> Changes:
        if not self._forgotten <= after <= self._sequence:
            return Changes(self._sequence, list(self._statuses.values()), complete=True)
        return Changes(
            self._sequence,
            [each for key, each in self._statuses.items() if self._changes[key] > after],
            [model_id for model_id, sequence in self._gone.items() if sequence > after],
        )
