"""Loads models for the calls that ask for them, see `model_mgmt_svc.demand_line` for the order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from prometheus_client import Counter

from model_mgmt_svc.auto_load import AutoLoad
from model_mgmt_svc.demand_line import Line
from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.evictor import to_make_room_for
from model_mgmt_svc.life_options import LifeOptions
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.reconciler import Reconciler
from shared.errors import (
    CallCancelledError,
    ModelNotLoadedError,
    OutOfMemoryError,
    PipelineMismatchError,
    QueueFullError,
    ServiceError,
    WorkerUnavailableError,
)
from shared.model_host import parse_needs
from shared.model_ids import ModelId
from shared.pipelines import TEXT_PIPELINES, find_pipeline
from shared.single_flight import SharedWork, SingleFlight

log = logging.getLogger(__name__)

T = TypeVar("T")

# Between two looks at the memory, while a model waits for room.
LOOK_SECONDS = 0.2
# How long a model is closed while its calls do not end; then it takes calls again.
CLOSED_SECONDS = 30.0
# How often a load that does not fit is tried although there seemed to be room.
MAX_TRIES = 5
# After a load for calls has failed, those that come are told so, without another try, for this
# long; twice as long after each further failure.
FIRST_PAUSE_SECONDS = 2.0
MAX_PAUSE_SECONDS = 60.0
# Models whose type is looked for at once: the file provider is asked for up to a hundred names of
# one that it does not have.
MAX_RESOLVED = 4
# How many failures are remembered: whoever makes a call chooses the id.
MAX_FAILURES = 1000

LOADS = Counter("model_mgmt_loads_for_calls", "Loads for calls, by outcome.", ["outcome"])

# Finds the type of a model that nobody has asked for, and its file.
Resolve = Callable[[ModelId], Awaitable[DesiredModel]]


@dataclass(frozen=True)
class _Failure:
    """Why a model could not be had; `until` is when the next call tries again."""

    error: ServiceError
    until: float
    count: int


class Demand:
    """Brings models for the calls that ask for them; calls for one model share its load.

    Args:
        auto_load: which models.
        line: the order.
        desired: the desired models, some of which are evicted.
        lifecycle: loads and evicts them.
        reconciler: says when a model that failed is tried again.
        resolve: finds the type of a model that nobody has asked for.
        clock: monotonic seconds.
        wall_clock: Unix seconds.
    """

    def __init__(
        self,
        auto_load: AutoLoad,
        line: Line,
        desired: DesiredModels,
        lifecycle: Lifecycle,
        reconciler: Reconciler,
        resolve: Resolve,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._auto_load = auto_load
        self._line = line
        self._desired = desired
        self._lifecycle = lifecycle
        self._reconciler = reconciler
        self._resolve = resolve
        self._clock = clock
        self._wall_clock = wall_clock
        self._resolving = asyncio.Semaphore(MAX_RESOLVED)
        self._found: SingleFlight[ModelId, SharedWork[DesiredModel]] = SingleFlight()
        self._brought: SingleFlight[ModelId, _Bring] = SingleFlight()
        self._failures: dict[tuple[ModelId, str], _Failure] = {}
        # What the last load of a model has needed, by device, where it has not fitted.
        self._needs: dict[ModelId, Mapping[str, int]] = {}
        self._closing: dict[ModelId, asyncio.Task[bool]] = {}

    async def aclose(self) -> None:
        """Ends the waiting of all calls; loads go on."""
        await self._found.close()
        await self._brought.close()
        for closing in self._closing.values():
            closing.cancel()

    def wanted(self) -> list[DesiredModel]:
        """The models that calls wait for."""
        return [each.model for each in self._brought]

    def forgive(self, model_id: ModelId) -> None:
        """Forgets that a model could not be had: somebody has asked for it by LoadModel."""
        for key in [key for key in self._failures if key[0] == model_id]:
            del self._failures[key]

    async def want(self, model_id: ModelId, call: str) -> None:
        """Returns when a model is READY on the replicas of its service.

        A load that has begun goes on when nobody waits for it any more.

        Args:
            model_id: the model, or an alias of it.
            call: the RPC that needs it.

        Raises:
            ModelNotLoadedError: it may not be loaded for calls, or has failed too often.
            PipelineMismatchError: it is of a type that does not answer this call.
            WorkerUnavailableError: it has failed, and is tried again later.
            ServiceError: why it cannot be had, as `resolve` and `Lifecycle.load`.
        """
        if not self._auto_load.on:
            raise _not_loaded(model_id)
        model_id = self._lifecycle.model_of(model_id)
        self._tell_retry(model_id)
        self._tell_failure((model_id, ""))
        self._tell_failure((model_id, call))
        try:
            with self._found.join(model_id, lambda: _work(self._find(model_id))) as found:
                model = await found.finished()
        except ServiceError as error:
            self._note_failure((model_id, ""), error)
            raise
        try:
            _check_call(model, call)
        except PipelineMismatchError as error:
            self._note_failure((model_id, call), error)
            raise
        with self._brought.join(model.model_id, lambda: self._start(model)) as brought:
            await brought.finished()

    def _start(self, model: DesiredModel) -> _Bring:
        bring = _Bring(model)
        bring.task = asyncio.create_task(self._bring(model))
        return bring

    async def _find(self, model_id: ModelId) -> DesiredModel:
        """What a call asks for, with its type and options."""
        if loading := self._loading(model_id):
            return loading
        if model := self._desired.get(model_id):
            return model
        if held := await self._lifecycle.held_as(model_id):
            return DesiredModel(model_id, held, asked=False)
        if not self._auto_load.allows(model_id):
            raise _not_loaded(model_id)
        # Once evicted it is no longer desired, since it comes back on call in any case.
        async with self._resolving:
            model = await self._resolve(model_id)
        return replace(model, life=LifeOptions(evict="forget"), asked=False)

    def _loading(self, model_id: ModelId) -> DesiredModel | None:
        """The model, if its load is in flight."""
        return next((each for each in self._lifecycle.loading() if each.model_id == model_id), None)

    def _tell_retry(self, model_id: ModelId) -> None:
        """Raises why a desired model has failed, unless it is about to be loaded again.

        That is not remembered: the model may come back, and be evicted, at any time.
        """
        retry, desired = self._reconciler.retry(model_id), self._desired.get(model_id)
        if retry is None or desired is None or desired.evicted or self._loading(model_id):
            return
        if retry.given_up:
            raise ModelNotLoadedError(
                f"model {model_id} failed too often to be loaded again unasked: {retry.reason}; "
                "call LoadModel to try again"
            )
        if retry.wait_seconds:
            raise WorkerUnavailableError(
                f"model {model_id} is about to be loaded again, in {retry.wait_seconds:.0f} s: "
                f"{retry.reason}",
                retry_after=max(retry.wait_seconds, 1.0),
            )

    async def _bring(self, model: DesiredModel) -> None:
        model_id = model.model_id
        if closing := self._closing.get(model_id):
            await asyncio.wait({closing})
        if await self._lifecycle.is_ready(model):
            return
        self._line.join(model_id)
        try:
            await self._load(model)
        except ServiceError as error:
            LOADS.labels("failed").inc()
            self._note_failure((model_id, ""), error)
            log.warning(
                "a load for calls failed", extra={"model_id": model_id, "error": error.message}
            )
            raise
        finally:
            self._line.leave(model_id)
        LOADS.labels("loaded").inc()
        self.forgive(model_id)
        await self._look()

    async def _load(self, model: DesiredModel) -> None:
        """Loads a model in its turn, again if it does not fit since there is room later."""
        tries = 1
        while True:
            while not self._line.take_turn(model.model_id):
                await asyncio.sleep(LOOK_SECONDS)
            await self._wait_for_room(model)
            try:
                await self._lifecycle.load(model, view=self._line.as_idle)
            except OutOfMemoryError as error:
                needs = parse_needs(error.metadata.get("needs", ""))
                if not needs or tries == MAX_TRIES:
                    raise
                self._needs[model.model_id] = needs
                room = await self._lifecycle.room(model, needs, self._line.as_idle)
                if room.enough:  # it was taken by others, or there is some since just now
                    tries += 1
                elif not room.later:
                    raise
                self._line.needs_room(model.model_id)
                await asyncio.sleep(LOOK_SECONDS)
            else:
                return

    async def _wait_for_room(self, model: DesiredModel) -> None:
        """Returns when there is room for a model, or none can be made; then its load says why."""
        needs = self._needs.get(model.model_id)
        while needs:
            await self._look()
            room = await self._lifecycle.room(model, needs, self._line.as_idle)
            if room.enough or not room.later:
                return
            self._line.needs_room(model.model_id)
            while not self._line.take_turn(model.model_id):
                await asyncio.sleep(LOOK_SECONDS)
            if self._line.may_close(model.model_id):
                room = await self._lifecycle.room(model, needs, self._line.as_closed)
                if room.enough:
                    victims = [victim.model_id for victim in room.victims]
                    await asyncio.gather(*(self._close(each, model.model_id) for each in victims))
                    continue
            await asyncio.sleep(LOOK_SECONDS)

    async def _close(self, model_id: ModelId, wanted: ModelId) -> None:
        """Evicts a model after its calls, while new ones wait."""
        task = self._closing.get(model_id)
        if task is None:  # else those have gone that it was closed for
            why = to_make_room_for(wanted)
            task = asyncio.create_task(
                self._lifecycle.evict(model_id, why, idle_within=CLOSED_SECONDS)
            )
            self._closing[model_id] = task
            task.add_done_callback(lambda _: self._closing.pop(model_id))
            log.info("a model is closed", extra={"model_id": model_id, "wanted": wanted})
        if not await asyncio.shield(task):
            self._line.reopened(model_id)

    async def _look(self) -> None:
        """Tells the line which models are in memory, and since when."""
        models = await self._lifecycle.loaded()
        now = self._wall_clock()
        self._line.saw((each.model_id, each.loaded_at, now - each.loaded_at) for each in models)

    def _tell_failure(self, key: tuple[ModelId, str]) -> None:
        failure = self._failures.get(key)
        if failure and self._clock() < failure.until:
            raise failure.error

    def _note_failure(self, key: tuple[ModelId, str], error: ServiceError) -> None:
        """Remembers an error, unless it says nothing of the model."""
        if isinstance(error, QueueFullError | CallCancelledError):
            return
        now, before = self._clock(), self._failures.pop(key, None)
        if before and now < before.until:
            self._failures[key] = before  # of the same try, told to another caller
            return
        count = before.count + 1 if before and now < before.until + MAX_PAUSE_SECONDS else 1
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** (count - 1), MAX_PAUSE_SECONDS)
        self._failures[key] = _Failure(error, now + pause, count)
        while len(self._failures) > MAX_FAILURES:
            del self._failures[next(iter(self._failures))]


class _Bring(SharedWork[None]):
    """The way of a model into memory, for all calls that wait for it."""

    def __init__(self, model: DesiredModel) -> None:
        super().__init__()
        self.model = model


def _work(awaitable: Awaitable[T]) -> SharedWork[T]:
    work: SharedWork[T] = SharedWork()
    work.task = asyncio.ensure_future(awaitable)
    return work


def _not_loaded(model_id: ModelId) -> ModelNotLoadedError:
    return ModelNotLoadedError(f"model {model_id} is not loaded; call LoadModel first")


def _check_call(model: DesiredModel, call: str) -> None:
    """Raises PipelineMismatchError if a model's type does not answer a call."""
    pipeline = find_pipeline(model.pipeline_type)
    if call in pipeline.calls:
        return
    answers = " and ".join(pipeline.calls) or f"calls of {pipeline.service}_svc"
    needed = ", ".join(sorted(one.name for one in TEXT_PIPELINES if call in one.calls))
    raise PipelineMismatchError(
        f"model {model.model_id} is of type {pipeline.name}, which answers {answers}; {call} needs "
        f"one of {needed}"
    )
