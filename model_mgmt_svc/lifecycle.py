"""Loading, unloading and listing models over the replicas of the services that hold them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import WeakSet, WeakValueDictionary

from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.eviction import Choice, Resident, describe
from model_mgmt_svc.evictor import (
    EVICTIONS,
    FREE_SECONDS,
    Evictor,
    Need,
    View,
    as_it_is,
    evicted_restore,
    rank_of,
    to_make_room_for,
)
from model_mgmt_svc.life_options import (
    DEFAULT_LIFE,
    NO_CHANGE,
    LifeChange,
    LifeOptions,
    split_life,
)
from model_mgmt_svc.outcomes import gather_outcomes, run_to_completion
from model_mgmt_svc.replicas import (
    CONNECT_SECONDS,
    LoadedModel,
    Replica,
    ReplicaModel,
    Replicas,
    list_models,
)
from shared.errors import (
    CallCancelledError,
    InvalidArgumentError,
    ModelNotLoadedError,
    OutOfMemoryError,
    PipelineMismatchError,
    QueueFullError,
    ServiceError,
    UnavailableError,
    UnknownPipelineError,
    WorkerUnavailableError,
)
from shared.model_host import ModelLife, Restore, parse_needs
from shared.model_ids import ModelId
from shared.pipelines import ServiceName, find_pipeline
from shared.single_flight import SharedWork, SingleFlight

log = logging.getLogger(__name__)

T = TypeVar("T")

# How often a load is tried that does not fit and has others evicted: more than twice where its
# conversion needs other room than itself, or another load has taken what was free.
MAX_TRIES = 8
# How long a failed load is remembered: it is among the states of models, and if it went on without
# callers, the next one is told.
FAILED_SECONDS = 60.0


class _Load(SharedWork[LoadedModel]):
    """A load in flight, shared by all callers who ask for it.

    Attributes:
        model: what is loaded.
        requested: whether a caller has asked for it; false if only the reconciler restores it.
        callers: number of callers who wait, the reconciler left out.
        change: what callers change of the model's options of life.
        asked: whether one of them is a caller of LoadModel.
        view: see `Need`.
        evicted: the entries of the models that were evicted for it.
        failure: why it has failed on a replica.
        has_no_room: no other model can make room, and none is on its way in or out of memory.
    """

    def __init__(self, model: DesiredModel) -> None:
        super().__init__()
        self.model = model
        self.requested = False
        self.callers = 0
        self.change = LifeChange()
        self.asked = False
        self.view: View = as_it_is
        self.evicted: list[DesiredModel] = []
        self.failure: ServiceError | None = None
        self.has_no_room = False

    def wish(self, model: DesiredModel) -> DesiredModel:
        """An entry of the record after what the callers have asked for."""
        life = model.life
        if self.asked and not model.sources:  # desired for calls alone until now
            life = replace(life, evict=DEFAULT_LIFE.evict)
        return replace(model, life=self.change.of(life), asked=model.asked or self.asked)

    @property
    def why(self) -> str:
        """Why models are evicted for it."""
        return to_make_room_for(self.model.model_id)

    def result(self) -> LoadedModel:
        """As `SharedWork.result`."""
        if self.task.cancelled():
            raise CallCancelledError(
                f"model {self.model.model_id!r} was unloaded while it was loading"
            )
        return super().result()


@dataclass(frozen=True)
class FailedLoad:
    """How a load has failed that callers had asked for; `at` is on the loop's clock.

    `unseen` is true until a caller is told: nobody waited for it any more.
    """

    model: DesiredModel
    error: ServiceError
    at: float
    unseen: bool


@dataclass(frozen=True)
class _Plan:
    """What a load has to do.

    Attributes:
        desired: the model, with the options that it has or will have.
        before: its entry among the desired models until now; None if there is none.
        missing: the replicas that lack it.
        loaded: the model as the other replicas hold it.
    """

    desired: DesiredModel
    before: DesiredModel | None
    missing: Sequence[Replica]
    loaded: Sequence[ReplicaModel]


class Lifecycle:
    """Loads and unloads models, one operation at a time for each model.

    Args:
        replicas: the processes that hold models.
        desired: the record of the desired models.
        refresh: brings the files of a model up to date with their source.
        max_loads: models that are loaded at once, at most.
        start_seconds: how long a load waits for a service that is starting.
    """

    def __init__(
        self,
        replicas: Replicas,
        desired: DesiredModels,
        refresh: Callable[[ModelId], Awaitable[None]],
        *,
        max_loads: int = 64,
        start_seconds: float = 0,
    ) -> None:
        self._replicas = replicas
        self._desired = desired
        self._refresh = refresh
        self._max_loads = max_loads
        self._start_seconds = start_seconds
        self._failed: dict[ModelId, FailedLoad] = {}
        self._loads: SingleFlight[ModelId, _Load] = SingleFlight()
        self._unloads: set[asyncio.Task[int]] = set()
        self._locks: WeakValueDictionary[ModelId, asyncio.Lock] = WeakValueDictionary()
        self._evictor = Evictor(replicas, desired, self._lock, self.is_loading)
        # What replicas held at the last look, and what of it nobody desired at the look before.
        self._held: dict[Replica, list[ReplicaModel]] = {}
        self._left: set[tuple[Replica, ModelId]] = set()
        # The replicas that `adopt` has asked.
        self._asked: WeakSet[Replica] = WeakSet()

    async def aclose(self) -> None:
        """Cancels the loads in flight and waits for the unloads to finish."""
        await self._loads.close()
        if self._unloads:
            await asyncio.wait(self._unloads, timeout=FREE_SECONDS)

    async def load(
        self, model: DesiredModel, change: LifeChange = NO_CHANGE, view: View = as_it_is
    ) -> LoadedModel:
        """Makes a model desired and loads it on every replica of its service that is up.

        What does not fit into memory evicts idle models, see `model_mgmt_svc.eviction`; they come
        back if it fails all the same.

        Callers who ask for the same model at the same time share one load. It goes on when they
        leave, so that the next one finds the model, or is told why it cannot be loaded. A load that
        fails leaves the desired models as they were. If no replica holds the model yet, its files
        are first brought up to date with their source; otherwise all replicas use the files that
        are there.

        Args:
            model: what is loaded, with its options.
            change: of the options of life, which a loaded model gets at once.
            view: how the load sees other models, which may stay for a reason of its own, see
                `Need`. A caller who asks for the same load without it lifts that.

        Raises:
            PipelineMismatchError: it is loaded, or being loaded, with another type.
            FailedPreconditionError: another model has one of its names.
            WorkerUnavailableError: no replica is up, or the one that loaded went away.
            OutOfMemoryError: it does not fit, and the message tells why no model makes room.
            CallCancelledError: it was unloaded meanwhile.
            QueueFullError: too many other models are being loaded.
            ServiceError: what a replica raised, or `ModelFiles.refresh`.
        """
        self._tell_unseen(model)
        with self._requested(model, change, view) as load:
            load.callers += 1
            try:
                loaded = await load.finished()
            finally:
                load.callers -= 1
        await self._note_asked_type(model)
        note = await self._kept_options(loaded.options, model)
        notes = filter(None, [note or loaded.note, self._evicted_for(load)])
        return replace(loaded, note=". ".join(notes))

    def _evicted_for(self, load: _Load) -> str:
        """Which models have made room for a load, for its callers; empty if none has."""
        names = [each.model_id for each in load.evicted if self._evictor.has_gone(each, load.why)]
        if not names:
            return ""
        were = "was" if len(names) == 1 else "were"
        return f"{', '.join(names)} {were} evicted to make room for it"

    async def _note_asked_type(self, model: DesiredModel) -> None:
        """Keeps the name that the last caller gave the type of a model."""
        desired = self._desired.get(model.model_id)
        if desired and desired.asked_type != model.asked_type:
            await self._desired.put(replace(desired, asked_type=model.asked_type))

    async def held_as(self, model_id: ModelId) -> str:
        """The type of a model that is loaded, or that callers are loading; empty if it is not."""
        load = self._loads.get(model_id)
        if load and load.requested:
            return load.model.pipeline_type
        models_of = await list_models(self._replicas.all())
        held = (_ready(models, model_id) for models in models_of.values())
        return next((model.pipeline_type for model in held if model), "")

    def model_of(self, name: ModelId) -> ModelId:
        """The model that a caller means by this name, see `DesiredModels.model_of`."""
        return self._desired.model_of(name)

    def options_of_evicted(self, model_id: ModelId) -> Mapping[str, str]:
        """The options that an evicted model had, and has again unless a caller names others."""
        desired = self._desired.get(model_id)
        return desired.options if desired and desired.evicted else {}

    def life_of(self, model_id: ModelId) -> LifeOptions | None:
        """The options of life of a desired model; None if it is not desired."""
        desired = self._desired.get(model_id)
        return desired.life if desired else None

    async def begin(self, model: DesiredModel, change: LifeChange = NO_CHANGE) -> None:
        """As `load`, but it does not wait: the load goes on.

        Raises:
            PipelineMismatchError, QueueFullError: as `load`.
            ServiceError: how the load failed that was begun so before.
        """
        self._tell_unseen(model)
        for models in (await self.models()).values():
            if loaded := _ready(models, model.model_id):
                _check_type(loaded.pipeline_type, model)
        with self._requested(model, change):
            pass

    async def check(self, model: DesiredModel) -> Mapping[str, str]:
        """All options that a load would have, with the values of those that are not given.

        Only those that are given, while no replica of its service is up.

        Raises:
            InvalidArgumentError: the pipeline type or an option is not valid.
        """
        for replica in self._replicas.of(_service(model)):
            with contextlib.suppress(UnavailableError):
                return await replica.check(model.pipeline_type, model.options)
        return model.options

    def is_loading(self, model_id: ModelId) -> bool:
        """Whether a load is in flight."""
        return self._loads.get(model_id) is not None

    @property
    def unsaved(self) -> str:
        """Why changes of the desired models are not on the disk; empty if all are."""
        return self._desired.unsaved

    def is_requested(self, model_id: ModelId) -> bool:
        """Whether a load is in flight that a caller has asked for."""
        load = self._loads.get(model_id)
        return load is not None and load.requested

    async def restore(self, model: DesiredModel) -> LoadedModel | None:
        """Loads a desired model where it is missing.

        Returns None if a load is in flight that a caller has asked for, or if there is no room for
        it: then it counts as evicted.

        Raises:
            ModelNotLoadedError: it is no longer desired.
            As `load`.
        """
        if self.is_requested(model.model_id):
            return None
        with self._loads.join(model.model_id, lambda: self._start(model)) as load:
            try:
                return await load.finished()
            except OutOfMemoryError:
                if load.requested or not load.has_no_room:
                    raise
                await self._evictor.give_up(model.model_id)
                return None

    async def evict(self, model_id: ModelId, why: str, *, idle_within: float = 0) -> bool:
        """Takes a model out of memory if it is idle, see `Evictor.evict`; it stays desired."""
        return await self._evictor.evict(model_id, why, idle_within=idle_within)

    async def is_ready(self, model: DesiredModel) -> bool:
        """Whether all replicas of its service that answer hold a model, one at least."""
        missing = await self.missing([model])
        lacks = [bool(models) for replica, models in missing.items() if _serves(replica, model)]
        return bool(lacks) and not any(lacks)

    async def room(self, model: DesiredModel, needs: Mapping[str, int], view: View) -> Choice:
        """Whether a load would find room now, and which models would go for it.

        Args:
            model: what is to be loaded.
            needs: bytes by device.
            view: as in `load`.

        Returns:
            Of the replicas that lack it, the choice of the first that has no room; otherwise the
            victims of all.
        """
        victims: dict[ModelId, Resident] = {}
        for replica, lacking in (await self.missing([model])).items():
            if lacking and needs.keys() <= replica.memory.keys():
                need = Need(model.model_id, replica, needs, view=view)
                choice = await self._evictor.look(need)
                if not choice.enough:
                    return choice
                victims |= {victim.model_id: victim for victim in choice.victims}
        return Choice(list(victims.values()))

    async def finish_evictions(self) -> None:
        """See `Evictor.finish`."""
        await self._evictor.finish()

    def evictions(self, replica: Replica) -> list[Restore]:
        """What the callers of evicted models are told, of those that belong on this replica."""
        return [
            evicted_restore(model.model_id, model.evicted_why)
            for model in self._desired.all()
            if model.evicted and _serves(replica, model) and not self.is_requested(model.model_id)
        ]

    async def unload(self, model_id: ModelId) -> int:
        """Makes a model no longer desired and frees it; returns how many replicas held it.

        A load in flight is cancelled. Once started, the unload finishes even if its caller goes
        away.

        Raises:
            ModelNotLoadedError: it was neither loaded nor desired.
            ServiceError: what a replica raised.
        """
        task = asyncio.create_task(self._unload(model_id))
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)
        return await asyncio.shield(task)

    def loading(self) -> list[DesiredModel]:
        """The models whose loads are in flight."""
        return [load.model for load in self._loads]

    def failed(self) -> list[FailedLoad]:
        """The loads that callers had asked for and that have failed within `FAILED_SECONDS`."""
        now = asyncio.get_running_loop().time()
        kept = self._failed.items()
        self._failed = {key: each for key, each in kept if now < each.at + FAILED_SECONDS}
        return list(self._failed.values())

    async def models(self) -> dict[Replica, list[ReplicaModel]]:
        """The models of each replica that answers, whatever their state."""
        return await list_models(self._replicas.all())

    async def loaded(self) -> list[LoadedModel]:
        """The models in memory, ordered by id, as reported by the replicas that are up."""
        by_id: dict[ModelId, list[ReplicaModel]] = defaultdict(list)
        for models in (await self.models()).values():
            for model in models:
                if model.ready:
                    by_id[model.model_id].append(model)
        return [
            replace(LoadedModel.over(by_id[model_id]), asked_type=self._asked_type(model_id))
            for model_id in sorted(by_id)
        ]

    def _asked_type(self, model_id: ModelId) -> str:
        desired = self._desired.get(model_id)
        return desired.asked_type if desired else ""

    async def adopt(self) -> None:
        """Rebuilds a lost record of the desired models from what the replicas hold.

        Each replica is asked once, when it first answers.
        """
        if self._desired.complete:
            return
        replicas = self._replicas.all()
        models_of = await list_models([each for each in replicas if each not in self._asked])
        self._asked.update(models_of)
        await self._desired.adopt(
            DesiredModel(
                model.model_id,
                model.pipeline_type,
                model.options,
                life=_told_life(replica, model.model_id),
            )
            for replica, models in models_of.items()
            for model in models
            if model.ready
        )
        if all(replica in self._asked for replica in replicas):
            await self._desired.rebuilt()

    async def missing(self, desired: Iterable[DesiredModel]) -> dict[Replica, list[DesiredModel]]:
        """For each replica that is up, the desired models that it should hold but does not."""
        desired = list(desired)
        self._held = await list_models(self._replicas.all())
        return {
            replica: [
                model
                for model in desired
                if _serves(replica, model) and _ready(models, model.model_id) is None
            ]
            for replica, models in self._held.items()
        }

    def free_left(self) -> None:
        """Frees what replicas hold and nobody desires, as of two calls of `missing` in a row.

        It is left by an unload that was cut short: this service has died, or a replica was away.
        """
        if not self._desired.complete:
            return
        left = {
            (replica, model.model_id)
            for replica, models in self._held.items()
            for model in models
            if model.ready and self._is_left(model.model_id)
        }
        for replica, model_id in left & self._left:
            task = asyncio.create_task(self._free_left(replica, model_id))
            self._unloads.add(task)
            task.add_done_callback(self._unloads.discard)
        self._left = left - self._left

    async def _free_left(self, replica: Replica, model_id: ModelId) -> int:
        async with self._lock(model_id):
            if self._desired.get(model_id) or self.is_loading(model_id):
                return 0
            try:
                await replica.unload(model_id)
            except ServiceError as error:
                if not isinstance(error, ModelNotLoadedError):
                    log.warning("cannot free a model", extra={"error": error.message})
                return 0
        log.info(
            "freed a model that was left of an unload",
            extra={"model_id": model_id, "address": replica.address},
        )
        return 1

    def _is_left(self, model_id: ModelId) -> bool:
        lock = self._locks.get(model_id)
        return not (
            self._desired.get(model_id) or self.is_loading(model_id) or (lock and lock.locked())
        )

    def lives(self, replica: Replica) -> list[ModelLife]:
        """The options of life of a replica's models, where they are not the defaults."""
        return [
            ModelLife(model.model_id, model.life.aliases, model.life.as_options())
            for model in self._desired.all()
            if model.life != DEFAULT_LIFE and _serves(replica, model)
        ]

    @contextlib.contextmanager
    def _requested(
        self, model: DesiredModel, change: LifeChange, view: View = as_it_is
    ) -> Iterator[_Load]:
        """The load of a model that a caller has asked for, begun unless it is in flight.

        Raises:
            PipelineMismatchError: it is being loaded with another type.
            FailedPreconditionError: another model has one of its names.
            QueueFullError: too many other models are being loaded.
        """
        self._desired.check_names(model.model_id, change.of(model.life).aliases)
        if self._loads.get(model.model_id) is None and len(self._loads) >= self._max_loads:
            raise QueueFullError(f"{len(self._loads)} models are being loaded, which is the limit")
        with self._loads.join(model.model_id, lambda: self._start(model), goes_on=True) as load:
            _check_type(load.model.pipeline_type, model)
            if not load.requested or view is as_it_is:
                load.view = view
            load.requested = True
            load.change = load.change.and_then(change)
            load.asked |= model.asked
            yield load

    def _start(self, model: DesiredModel) -> _Load:
        self._failed.pop(model.model_id, None)
        load = _Load(model)
        load.task = asyncio.create_task(self._load(load))
        return load

    async def _load(self, load: _Load) -> LoadedModel:
        try:
            return await self._load_once(load)
        except ServiceError as error:
            if load.requested or load.model.loading:
                self._keep_failed(load, error)
            raise

    def _keep_failed(self, load: _Load, error: ServiceError) -> None:
        unseen = not load.callers
        if unseen:
            log.warning(
                "a load failed that no caller waited for",
                extra={"model_id": load.model.model_id, "error": error.message},
            )
        now = asyncio.get_running_loop().time()
        self._failed[load.model.model_id] = FailedLoad(load.model, error, now, unseen)

    def _tell_unseen(self, model: DesiredModel) -> None:
        """Raises, once, the error of a load that failed while no caller waited for it."""
        for failed in self.failed():
            asked, before = (
                (each.model_id, each.pipeline_type, each.options) for each in (model, failed.model)
            )
            if asked == before and failed.unseen:
                self._failed[model.model_id] = replace(failed, unseen=False)
                raise failed.error

    async def _load_once(self, load: _Load) -> LoadedModel:
        async with self._lock(load.model.model_id):
            plan = await self._plan(load)
            if load.requested and not plan.loaded:
                await self._refresh(plan.desired.files_id)
            try:
                loaded = await self._load_missing(load, plan)
            except BaseException as error:
                await run_to_completion(self._undo(load, plan, error))
                raise
            finally:
                self._evictor.release(load.model.model_id)
            EVICTIONS.labels(load.model.model_id)  # it has to exist before it can increase
            if now := self._desired.get(load.model.model_id):  # of callers who came meanwhile
                await self._desired.put(load.wish(now))
            return LoadedModel.over([*plan.loaded, *loaded])

    async def _plan(self, load: _Load) -> _Plan:
        """Compares what is desired with what the replicas hold."""
        desired = load.model
        before = self._desired.get(desired.model_id)
        if before:  # the rest may have changed since
            desired = replace(
                desired, life=before.life, asked=before.asked, file_entry=before.file_entry
            )
        if not load.requested and (before is None or before.evicted):
            raise ModelNotLoadedError(f"model {desired.model_id!r} is no longer desired in memory")
        replicas = await self._reachable(desired)
        missing = [replica for replica, model in replicas.items() if model is None]
        loaded = [model for model in replicas.values() if model is not None]
        if loaded:  # a loaded model keeps its options
            desired = before or replace(desired, options=loaded[0].options)
        wish = replace(load.wish(desired), evicted_why="")
        return _Plan(wish, before, missing, loaded)

    async def _started(self, service: ServiceName) -> dict[Replica, list[ReplicaModel]]:
        """The replicas of a service that answer once one does, each with its models.

        Those that have been silent for longer than a start takes are not waited for.
        """
        while True:
            replicas = self._replicas.of(service)
            models_of = await list_models(replicas, CONNECT_SECONDS)
            silent = min((replica.silent_seconds for replica in replicas), default=math.inf)
            if models_of or silent >= self._start_seconds:
                return models_of
            await self._replicas.refresh()

    async def _reachable(self, desired: DesiredModel) -> dict[Replica, ReplicaModel | None]:
        """The replicas for a model that are up, each with the model if it holds it already."""
        await self._replicas.refresh()
        service = _service(desired)
        models_of = await list_models(self._replicas.all())
        if not any(replica.service == service for replica in models_of):
            models_of |= await self._started(service)
        for models in models_of.values():
            if model := _ready(models, desired.model_id):
                _check_type(model.pipeline_type, desired)
        reachable = {
            replica: _ready(models, desired.model_id)
            for replica, models in models_of.items()
            if replica.service == service
        }
        if not reachable:
            raise WorkerUnavailableError(
                f"{service}_svc, which runs {desired.pipeline_type} models, is not reachable"
            )
        return reachable

    async def _load_missing(self, load: _Load, plan: _Plan) -> list[ReplicaModel]:
        """Makes the model desired and loads it where it is missing.

        Replicas that go away meanwhile do not matter as long as one is left.
        """
        is_first = not plan.loaded and (plan.before is None or plan.before.loading)
        await self._desired.put(replace(plan.desired, loading=is_first))
        models, errors = await gather_outcomes(
            self._load_on(replica, load, plan) for replica in plan.missing
        )
        for error in errors:
            if not models or not isinstance(error, UnavailableError):
                raise error
        if is_first and (desired := self._desired.get(plan.desired.model_id)):
            await self._desired.put(replace(desired, loading=False))
        return models

    async def _load_on(self, replica: Replica, load: _Load, plan: _Plan) -> ReplicaModel:
        """Loads a model on a replica; while it does not fit there, others are evicted for it."""
        model = plan.desired
        for tries in itertools.count(1):
            try:
                return await replica.load(model.model_id, model.pipeline_type, model.options)
            except OutOfMemoryError as error:
                if tries == MAX_TRIES:
                    raise
                try:
                    await self._make_room(replica, load, plan, error)
                except OutOfMemoryError as refusal:
                    load.failure = load.failure or refusal
                    raise
            except ServiceError as error:
                if not isinstance(error, UnavailableError):
                    load.failure = load.failure or error
                raise
        raise AssertionError("the loop ends by itself")

    async def _make_room(
        self, replica: Replica, load: _Load, plan: _Plan, error: OutOfMemoryError
    ) -> None:
        """Evicts models after a load has not fitted.

        Raises:
            OutOfMemoryError: there cannot be room.
            ServiceError: the load has failed on another replica.
        """
        needs = parse_needs(error.metadata.get("needs", ""))
        if not needs or needs.keys() - replica.memory.keys():
            raise error  # not of the budgets: its process went over its limit, for example
        below = None if load.requested else rank_of(plan.desired)
        need = Need(load.model.model_id, replica, needs, plan.missing, below, load.view)
        async with self._evictor.making_room:
            if load.failure:  # on another replica: nothing is evicted any more
                raise load.failure
            choice = await self._evictor.make_room(need, load.evicted)
        if choice.enough:
            return
        load.has_no_room = not any(stay.resident.stays for stay in choice.stays)
        holders = describe(choice.stays)
        message = f"{error.message}. {holders}" if holders else error.message
        raise OutOfMemoryError(message, metadata=error.metadata)

    async def _undo(self, load: _Load, plan: _Plan, error: BaseException) -> None:
        """After a load that failed: restores the desired models, frees what was loaded."""
        # The load that its caller had asked for, which went on after a restart of this service.
        first_failed = isinstance(error, ServiceError) and not isinstance(error, UnavailableError)
        if plan.before and not (plan.before.loading and first_failed):
            await self._desired.put_back(plan.before)
        else:
            await self._desired.remove(plan.desired.model_id)
            await self._free(plan.desired.model_id, plan.missing)
        await self._evictor.bring_back(load.evicted, load.why)

    async def _free(self, model_id: ModelId, replicas: Sequence[Replica]) -> None:
        """Frees what a load that failed has left on replicas."""
        try:
            async with asyncio.timeout(FREE_SECONDS):
                _, errors = await gather_outcomes(replica.unload(model_id) for replica in replicas)
        except TimeoutError:
            errors = [UnavailableError(f"a replica did not free a model within {FREE_SECONDS:g} s")]
        for error in errors:
            if not isinstance(error, ModelNotLoadedError | WorkerUnavailableError):
                log.warning("cannot clean up after a failed load", extra={"error": error.message})

    async def _kept_options(self, kept: Mapping[str, str], requested: DesiredModel) -> str:
        """Note for a caller who asks for other options than those that the loaded model has."""
        asked = requested.options
        if all(kept.get(name) == value for name, value in asked.items()):
            return ""
        now = await self.check(replace(requested, options=kept))
        wanted = await self.check(requested)
        other = {name: asked[name] for name in asked if wanted.get(name) != now.get(name)}
        if not other:  # the same in other words
            return ""
        named = dict(kept) | {name: now[name] for name in other if name in now}
        return (
            f"It keeps the options of its first load ({_words(named) or 'none'}); unload it to "
            f"load it with {_words(other)}"
        )

    async def _unload(self, model_id: ModelId) -> int:
        self._failed.pop(model_id, None)
        load = self._loads.get(model_id)
        if load:
            self._loads.stop(model_id, load)
        async with self._lock(model_id):
            was_desired = await self._desired.remove(model_id)
            models_of = await list_models(self._replicas.all())
            holders = [replica for replica, models in models_of.items() if model_id in _ids(models)]
            if not (holders or was_desired or load):
                raise ModelNotLoadedError(f"model {model_id!r} is not loaded")
            _, errors = await gather_outcomes(replica.unload(model_id) for replica in holders)
            for error in errors:
                if not isinstance(error, ModelNotLoadedError):
                    raise error
            return len(holders)

    def _lock(self, model_id: ModelId) -> asyncio.Lock:
        return self._locks.setdefault(model_id, asyncio.Lock())


def _service(model: DesiredModel) -> ServiceName:
    return find_pipeline(model.pipeline_type).service


def _serves(replica: Replica, model: DesiredModel) -> bool:
    """Whether a model belongs on this replica; false for a type that this version does not know."""
    try:
        return replica.service == _service(model)
    except UnknownPipelineError:
        return False


def _check_type(loaded: str, model: DesiredModel) -> None:
    if loaded != model.pipeline_type:
        raise PipelineMismatchError(
            f"model {model.model_id!r} is loaded as {loaded}, not {model.pipeline_type}; "
            "unload it first"
        )


def _told_life(replica: Replica, model_id: ModelId) -> LifeOptions:
    """The options of life that a replica was told of a model, before a record was lost."""
    told = next((each.options for each in replica.lives if each.model_id == model_id), {})
    try:
        return split_life(told)[0].of(DEFAULT_LIFE)
    except InvalidArgumentError:  # of another version
        return DEFAULT_LIFE


def _words(options: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(options.items()))


def _ids(models: Iterable[ReplicaModel]) -> set[ModelId]:
    return {model.model_id for model in models}


def _ready(models: Iterable[ReplicaModel], model_id: ModelId) -> ReplicaModel | None:
    return next((each for each in models if each.model_id == model_id and each.ready), None)
