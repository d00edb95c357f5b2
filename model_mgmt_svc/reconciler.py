"""Keeps the desired models loaded: replicas that are new or have restarted get them unasked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from model_mgmt_svc.admission import admit_replicas
from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.replicas import Replica, ReplicaModel, Replicas
from shared.errors import (
    ModelNotLoadedError,
    ServiceError,
    UnavailableError,
    WorkerUnavailableError,
)
from shared.model_host import Restore
from shared.model_ids import ModelId

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 60.0
# A restored model whose process lives this long has recovered: its failures are forgotten.
HEALTHY_SECONDS = 60.0


@dataclass
class RestoreFailures:
    """The failed attempts to restore a model, and its deaths, since it was healthy last.

    Attributes:
        attempts: all of them; decides the back-off and how long a new replica is held back.
        faults: those that were the fault of the model or its replica.
        reason: message of the last error.
        next_attempt: on the reconciler's clock.
        restored_at: the same; None unless the last attempt succeeded.
    """

    attempts: int = 0
    faults: int = 0
    reason: str = ""
    next_attempt: float = 0.0
    restored_at: float | None = None


class Reconciler:
    """Compares desired and loaded models periodically and loads what is missing.

    Args:
        replicas: the processes that hold models; resolved again in each round.
        desired: the desired models.
        lifecycle: loads them.
        interval: seconds between two rounds.
        max_failures: failed loads in a row after which a model stays FAILED until requested again.
        auto_load: whether models may be loaded for calls, which the replicas are told.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        replicas: Replicas,
        desired: DesiredModels,
        lifecycle: Lifecycle,
        *,
        interval: float,
        max_failures: int,
        clock: Callable[[], float],
        auto_load: bool = False,
    ) -> None:
        self._replicas = replicas
        self._desired = desired
        self._lifecycle = lifecycle
        self._interval = interval
        self._max_failures = max_failures
        self._clock = clock
        self._auto_load = auto_load
        self._failures: dict[ModelId, RestoreFailures] = {}
        self._running: dict[ModelId, asyncio.Task[None]] = {}
        # What has been counted of `Replica.died`, and the replicas that were told of restores.
        self._deaths: dict[Replica, set[tuple[ModelId, int]]] = {}
        self._told: set[Replica] = set()
        self._telling = asyncio.Lock()
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Runs rounds until cancelled."""
        try:
            while True:
                try:
                    await self.round()
                except Exception:
                    log.exception("a reconcile round failed")
                # Not wait_for, which before Python 3.12 loses a cancellation beside the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._woken.wait()
                self._woken.clear()
        finally:
            for task in self._running.values():
                task.cancel()

    def wake(self) -> None:
        """Starts the next round at once: a replica may wait for it."""
        self._woken.set()

    async def round(self) -> None:
        """Starts the loads that are due and admits the new replicas that may take calls.

        Loads run in tasks of their own: a slow one does not delay the others.
        """
        await self._replicas.refresh()
        await self._lifecycle.adopt()
        await self._lifecycle.finish_evictions()
        desired = [model for model in self._desired.all() if not model.evicted]
        missing = await self._lifecycle.missing(desired)
        self._lifecycle.free_left()
        missing_ids = {model.model_id for models in missing.values() for model in models}
        self._forget_others(desired)
        self._forget_healthy()
        self._count_deaths(missing)
        await self._tell(missing)
        for model in filter(self._is_due, desired):
            if model.model_id in missing_ids:
                self._running[model.model_id] = asyncio.create_task(self._restore(model))
        await admit_replicas(missing, self._gave_up)

    def failed(self) -> dict[ModelId, str]:
        """The models that are no longer retried, each with the reason."""
        return {
            model_id: failures.reason
            for model_id, failures in self._failures.items()
            if failures.faults >= self._max_failures
        }

    def retry(self, model_id: ModelId) -> Restore | None:
        """When a model that failed or died is tried again, and why; None if it is healthy."""
        failures = self._failures.get(model_id)
        if failures is None or failures.restored_at is not None:
            return None
        return self._planned(model_id)

    def forgive(self, model_id: ModelId) -> None:
        """Forgets the failures of a model that was requested again."""
        self._failures.pop(model_id, None)

    def _is_due(self, model: DesiredModel) -> bool:
        if model.model_id in self._running or self._lifecycle.is_requested(model.model_id):
            return False
        failures = self._failures.get(model.model_id)
        return failures is None or (
            failures.faults < self._max_failures and self._clock() >= failures.next_attempt
        )

    def _gave_up(self, model: DesiredModel) -> bool:
        """Whether too many attempts have failed, for any reason, for a new replica to wait."""
        failures = self._failures.get(model.model_id)
        return failures is not None and failures.attempts >= self._max_failures

    async def _restore(self, model: DesiredModel) -> None:
        try:
            loaded = await self._lifecycle.restore(model)
        except ModelNotLoadedError:
            return  # it has been unloaded meanwhile
        except ServiceError as error:
            self._note(model, error)
        else:
            if loaded:
                if failures := self._failures.get(model.model_id):
                    failures.restored_at = self._clock()
                log.info(
                    "model restored",
                    extra={"model_id": model.model_id, "replicas": loaded.replicas},
                )
        finally:
            del self._running[model.model_id]
        self.wake()

    def _note(self, model: DesiredModel, error: ServiceError) -> None:
        failures = self._failures.setdefault(model.model_id, RestoreFailures())
        failures.attempts += 1
        # A file provider that is down is not the model's fault; a worker that dies may be.
        if not isinstance(error, UnavailableError) or isinstance(error, WorkerUnavailableError):
            failures.faults += 1
        failures.reason = error.message
        self._back_off("cannot restore a model", model.model_id, failures, failures.attempts - 1)

    def _count_deaths(self, missing: Mapping[Replica, Iterable[DesiredModel]]) -> None:
        """Counts each process that has ended although its model was ready, once."""
        counted = self._deaths
        self._deaths = {replica: counted.get(replica, set()) for replica in self._replicas.all()}
        for replica, models in missing.items():
            wanted = {model.model_id for model in models}
            died = [model for model in replica.died if model.model_id in wanted]
            for model in died:
                if (model.model_id, model.loaded_at) not in counted.get(replica, ()):
                    self._note_death(model)
            self._deaths[replica] = {(model.model_id, model.loaded_at) for model in died}

    def _note_death(self, model: ReplicaModel) -> None:
        """The first death in a row is followed by a load at once, the others by a back-off.

        No number of them makes a model stay FAILED: it can be loaded, and a caller whose calls end
        its process must not take it away from the others.
        """
        failures = self._failures.setdefault(model.model_id, RestoreFailures())
        failures.attempts += 1
        failures.reason = model.reason
        self._back_off("a model has died", model.model_id, failures, failures.attempts - 2)

    def _back_off(
        self, what: str, model_id: ModelId, failures: RestoreFailures, doublings: int
    ) -> None:
        wait = 0.0
        if doublings >= 0:
            wait = min(FIRST_BACKOFF_SECONDS * 2.0**doublings, MAX_BACKOFF_SECONDS)
        failures.next_attempt = self._clock() + wait
        failures.restored_at = None
        log.warning(
            what,
            extra={
                "model_id": model_id,
                "error": failures.reason,
                "failures": failures.faults,
                "failed": failures.faults >= self._max_failures,
                "next_try_seconds": wait,
            },
        )

    async def tell_names(self) -> None:
        """Has the replicas know the other names of all models when this returns."""
        desired = [each for each in self._desired.all() if not each.evicted]
        await self._tell(await self._lifecycle.missing(desired))

    async def _tell(self, missing: Mapping[Replica, Iterable[DesiredModel]]) -> None:
        """Tells each replica the models' names, and what to expect of those that it lacks."""
        async with self._telling:  # the newest names are told last
            await self._tell_each(missing)

    async def _tell_each(self, missing: Mapping[Replica, Iterable[DesiredModel]]) -> None:
        self._told &= set(self._replicas.all())
        for replica, models in missing.items():
            lives = self._lifecycle.lives(replica)
            restores = [
                self._planned(model.model_id)
                for model in models
                # A first load may fail for good; what was loaded before comes back, whoever asks.
                if not (model.loading and self._lifecycle.is_requested(model.model_id))
            ]
            restores += self._lifecycle.evictions(replica)
            news = restores or self._auto_load or replica.lives != lives or not replica.told
            if not news and replica not in self._told:
                continue
            self._told.add(replica)
            try:
                await replica.tell_models(restores, lives, auto_load=self._auto_load)
            except ServiceError as error:
                log.warning("cannot tell a replica of its models", extra={"error": error.message})
            else:
                if not restores:
                    self._told.remove(replica)

    def _planned(self, model_id: ModelId) -> Restore:
        failures = self._failures.get(model_id)
        if failures is None:
            return Restore(model_id)
        if model_id in self._running:
            return Restore(model_id, reason=failures.reason)
        given_up = failures.faults >= self._max_failures
        wait = max(failures.next_attempt - self._clock(), 0.0)
        return Restore(model_id, 0.0 if given_up else wait, given_up, failures.reason)

    def _forget_healthy(self) -> None:
        """Forgets the failures of models that have lived long since they were restored."""
        for model_id, failures in list(self._failures.items()):
            restored_at = failures.restored_at
            if restored_at is not None and self._clock() - restored_at >= HEALTHY_SECONDS:
                del self._failures[model_id]

    def _forget_others(self, desired: Iterable[DesiredModel]) -> None:
        for model_id in set(self._failures) - {model.model_id for model in desired}:
            del self._failures[model_id]
