"""Loading, unloading and listing models over the replicas of the services that hold them.

Who asks for a load, and who shares it, is here; `model_mgmt_svc.loader` has what it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import WeakSet, WeakValueDictionary

from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.eviction import Choice, Resident
from model_mgmt_svc.evictor import (
    FREE_SECONDS,
    Evictor,
    Need,
    View,
    as_it_is,
    evicted_restore,
)
from model_mgmt_svc.life_options import (
    DEFAULT_LIFE,
    NO_CHANGE,
    LifeChange,
    LifeOptions,
    split_life,
)
from model_mgmt_svc.loader import Load, Loader, check_type, ready_in, serves, service_of
from model_mgmt_svc.outcomes import gather_outcomes
from model_mgmt_svc.replicas import (
    LoadedModel,
    Replica,
    ReplicaModel,
    Replicas,
    list_models,
)
from shared.errors import (
    InvalidArgumentError,
    ModelNotLoadedError,
    OutOfMemoryError,
    QueueFullError,
    ServiceError,
    UnavailableError,
)
from shared.model_host import ModelLife, Restore
from shared.model_ids import ModelId
from shared.single_flight import SingleFlight

log = logging.getLogger(__name__)

T = TypeVar("T")

# How long a failed load is remembered: it is among the states of models, and if it went on without
# callers, the next one is told.
FAILED_SECONDS = 60.0


@dataclass(frozen=True)
class FailedLoad:
    """How a load has failed that callers had asked for; `at` is on the loop's clock.

    `unseen` is true until a caller is told: nobody waited for it any more.
    """

    model: DesiredModel
    error: ServiceError
    at: float
    unseen: bool


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
        self._max_loads = max_loads
        self._failed: dict[ModelId, FailedLoad] = {}
        self._loads: SingleFlight[ModelId, Load] = SingleFlight()
        self._unloads: set[asyncio.Task[int]] = set()
        self._locks: WeakValueDictionary[ModelId, asyncio.Lock] = WeakValueDictionary()
        self._evictor = Evictor(replicas, desired, self._lock, self.is_loading)
        self._loader = Loader(
            replicas, desired, refresh, self._evictor, self._lock, start_seconds=start_seconds
        )
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

    def _evicted_for(self, load: Load) -> str:
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
        held = (ready_in(models, model_id) for models in models_of.values())
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
            if loaded := ready_in(models, model.model_id):
                check_type(loaded.pipeline_type, model)
        with self._requested(model, change):
            pass

    async def check(self, model: DesiredModel) -> Mapping[str, str]:
        """All options that a load would have, with the values of those that are not given.

        Only those that are given, while no replica of its service is up.

        Raises:
            InvalidArgumentError: the pipeline type or an option is not valid.
        """
        for replica in self._replicas.of(service_of(model)):
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
        lacks = [bool(models) for replica, models in missing.items() if serves(replica, model)]
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
            if model.evicted and serves(replica, model) and not self.is_requested(model.model_id)
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
                if serves(replica, model) and ready_in(models, model.model_id) is None
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
            if model.life != DEFAULT_LIFE and serves(replica, model)
        ]

    @contextlib.contextmanager
    def _requested(
        self, model: DesiredModel, change: LifeChange, view: View = as_it_is
    ) -> Iterator[Load]:
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
            check_type(load.model.pipeline_type, model)
            if not load.requested or view is as_it_is:
                load.view = view
            load.requested = True
            load.change = load.change.and_then(change)
            load.asked |= model.asked
            yield load

    def _start(self, model: DesiredModel) -> Load:
        self._failed.pop(model.model_id, None)
        load = Load(model)
        load.task = asyncio.create_task(self._load(load))
        return load

    async def _load(self, load: Load) -> LoadedModel:
        try:
            return await self._loader.run(load)
        except ServiceError as error:
            unloaded = isinstance(error, ModelNotLoadedError)  # since its restore began
            if load.requested or (load.model.loading and not unloaded):
                self._keep_failed(load, error)
            raise

    def _keep_failed(self, load: Load, error: ServiceError) -> None:
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
