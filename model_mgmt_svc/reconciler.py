"""Keeps wanted models loaded: workers that restarted, and new ones, get them without a call.

A new replica beside others takes no calls before it has the models that are wanted there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from model_mgmt_svc.desired import (
    Wish,
    WishStore,
)
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.replicas import (
    Worker,
    Workers,
)
from shared.errors import (
    ModelNotLoadedError,
    ServiceError,
    UnavailableError,
    WorkerUnavailableError,
)

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 60.0


@dataclass
class Trouble:
    """How restoring a model fails.

    Attributes:
        tries: in a row without success, for the back-off and the patience with a new replica.
        failures: those of them that the model or its worker was to blame for.
        reason: of the last one.
        next_try: on the reconciler's clock.
    """

    tries: int = 0
    failures: int = 0
    reason: str = ""
    next_try: float = 0.0


class Reconciler:
    """Compares wanted and loaded models again and again, and loads what is missing.

    Args:
        workers: the replicas; their names are looked up on each round.
        wishes: the wanted models.
        lifecycle: loads them.
        interval: seconds between two rounds.
        max_failures: after so many failures in a row a model is left alone until it is asked for.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        workers: Workers,
        wishes: WishStore,
        lifecycle: Lifecycle,
        *,
        interval: float,
        max_failures: int,
        clock: Callable[[], float],
    ) -> None:
        self._workers = workers
        self._wishes = wishes
        self._lifecycle = lifecycle
        self._interval = interval
        self._max_failures = max_failures
        self._clock = clock
        self._troubles: dict[str, Trouble] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Rounds without end, until it is cancelled."""
        try:
            while True:
                try:
                    await self.round()
                except Exception:
                    log.exception("a round of reconciling failed")
                # Not wait_for, which before Python 3.12 loses a cancellation beside the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._woken.wait()
                self._woken.clear()
        finally:
            for task in self._running.values():
                task.cancel()

    def wake(self) -> None:
        """The next round begins at once: a replica may wait for it."""
        self._woken.set()

    async def round(self) -> None:
        """Begins to load what is missing and due, and lets new replicas in that are to take calls.

        A slow load does not hold up the others.
        """
        await self._workers.refresh()
        wishes = await self._wishes.all()
        self._forget(wishes)
        lacking = await self._lifecycle.lacking(wishes)
        missing = {wish.model_id for lacks in lacking.values() for wish in lacks}
        for wish in filter(self._due, wishes):
            if wish.model_id in missing:
                self._running[wish.model_id] = asyncio.create_task(self._restore(wish))
        await self._admit(lacking)

    def failed(self) -> dict[str, str]:
        """The models that are left alone after too many failures, and why."""
        return {
            model_id: trouble.reason
            for model_id, trouble in self._troubles.items()
            if trouble.failures >= self._max_failures
        }

    def forgive(self, model_id: str) -> None:
        """Forgets the failures of a model that was asked for anew."""
        self._troubles.pop(model_id, None)

    def _due(self, wish: Wish) -> bool:
        if wish.model_id in self._running or self._lifecycle.is_asked_for(wish.model_id):
            return False
        trouble = self._troubles.get(wish.model_id)
        return trouble is None or (
            trouble.failures < self._max_failures and self._clock() >= trouble.next_try
        )

    async def _admit(self, lacking: Mapping[Worker, Sequence[Wish]]) -> None:
        """Lets in the new replicas that have all that is wanted of them.

        Where nobody else answers, one is better than none: it has some of the models, and says of
        the others that they are being loaded.
        """
        for worker in sorted(lacking, key=lambda each: len(lacking[each])):
            waits = any(not self._hopeless(wish) for wish in lacking[worker])
            if worker.admitted or (waits and _has_peers(worker, lacking)):
                continue
            try:
                await worker.admit()
            except ServiceError as error:
                log.warning("replica not admitted", extra={"error": error.message})

    def _hopeless(self, wish: Wish) -> bool:
        """Whether so many tries failed, for whatever reason, that nobody waits for the model."""
        trouble = self._troubles.get(wish.model_id)
        return trouble is not None and trouble.tries >= self._max_failures

    async def _restore(self, wish: Wish) -> None:
        try:
            model = await self._lifecycle.restore(wish)
            if model is None:
                return
        except ModelNotLoadedError:
            return  # taken back meanwhile
        except ServiceError as error:
            self._note(wish, error)
        else:
            self._troubles.pop(wish.model_id, None)
            log.info(
                "model restored",
                extra={"model_id": wish.model_id, "replicas": model.replicas},
            )
        finally:
            del self._running[wish.model_id]
            self.wake()

    def _note(self, wish: Wish, error: ServiceError) -> None:
        trouble = self._troubles.setdefault(wish.model_id, Trouble())
        trouble.tries += 1
        # A file provider that is down says nothing about the model; a worker that dies does.
        if not isinstance(error, UnavailableError) or isinstance(error, WorkerUnavailableError):
            trouble.failures += 1
        trouble.reason = error.message
        wait = min(FIRST_BACKOFF_SECONDS * 2.0 ** (trouble.tries - 1), MAX_BACKOFF_SECONDS)
        trouble.next_try = self._clock() + wait
        log.warning(
            "model not restored",
            extra={
                "model_id": wish.model_id,
                "error": error.message,
                "failures": trouble.failures,
                "failed": trouble.failures >= self._max_failures,
                "next_try_seconds": wait,
            },
        )

    def _forget(self, wishes: list[Wish]) -> None:
        wanted = {wish.model_id for wish in wishes}
        for model_id in set(self._troubles) - wanted:
            del self._troubles[model_id]


def _has_peers(worker: Worker, replicas: Iterable[Worker]) -> bool:
    """Whether another replica of its service takes calls."""
    return any(
        other.admitted and other.service == worker.service
        for other in replicas
        if other is not worker
    )
