"""What a load does: on every replica that lacks a model, with room made for it; undone if it fails.

`model_mgmt_svc.lifecycle` has who asks for a load, and who shares it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.eviction import describe
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
from model_mgmt_svc.life_options import DEFAULT_LIFE, LifeChange
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
    ModelNotLoadedError,
    OutOfMemoryError,
    PipelineMismatchError,
    ServiceError,
    UnavailableError,
    UnknownPipelineError,
    WorkerUnavailableError,
)
from shared.model_host import Restore, parse_needs
from shared.model_ids import ModelId
from shared.pipelines import ServiceName, find_pipeline
from shared.single_flight import SharedWork

log = logging.getLogger(__name__)

# How often a load is tried that does not fit and has others evicted: more than twice where its
# conversion needs other room than itself, or another load has taken what was free.
MAX_TRIES = 8


class Load(SharedWork[LoadedModel]):
    """A load in flight, shared by all callers who ask for it.

    Attributes:
        model: what is loaded.
        requested: whether a caller has asked for it; false if only the reconciler restores it.
        callers: number of callers who wait, the reconciler left out.
        change: what callers change of the model's options of life.
        asked: whether one of them is a caller of LoadModel.
        view: see `Need`.
        evicted: the entries of the models that were evicted for it.
        failed: why it has failed on a replica, once it has.
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
        self.failed: asyncio.Future[ServiceError] = asyncio.get_running_loop().create_future()
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


class Loader:
    """Loads models on the replicas that lack them.

    Args:
        replicas: the processes that hold models.
        desired: the record of the desired models.
        refresh: brings the files of a model up to date with their source.
        evictor: makes room.
        lock: of a model, held by whoever changes where it is loaded.
        start_seconds: how long a load waits for a service that is starting.
    """

    def __init__(
        self,
        replicas: Replicas,
        desired: DesiredModels,
        refresh: Callable[[ModelId], Awaitable[None]],
        evictor: Evictor,
        lock: Callable[[ModelId], asyncio.Lock],
        *,
        start_seconds: float,
    ) -> None:
        self._replicas = replicas
        self._desired = desired
        self._refresh = refresh
        self._evictor = evictor
        self._lock = lock
        self._start_seconds = start_seconds

    async def run(self, load: Load) -> LoadedModel:
        """Makes a model desired and loads it where it is missing; see `Lifecycle.load`."""
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

    async def _plan(self, load: Load) -> _Plan:
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
        service = service_of(desired)
        models_of = await list_models(self._replicas.all())
        if not any(replica.service == service for replica in models_of):
            models_of |= await self._started(service)
        for models in models_of.values():
            if model := ready_in(models, desired.model_id):
                check_type(model.pipeline_type, desired)
        reachable = {
            replica: ready_in(models, desired.model_id)
            for replica, models in models_of.items()
            if replica.service == service
        }
        if not reachable:
            raise WorkerUnavailableError(
                f"{service}_svc, which runs {desired.pipeline_type} models, is not reachable"
            )
        return reachable

    async def _load_missing(self, load: Load, plan: _Plan) -> list[ReplicaModel]:
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

    async def _load_on(self, replica: Replica, load: Load, plan: _Plan) -> ReplicaModel:
        """Loads a model on a replica; while it does not fit there, others are evicted for it."""
        model = plan.desired
        try:
            for tries in itertools.count(1):
                try:
                    return await replica.load(model.model_id, model.pipeline_type, model.options)
                except OutOfMemoryError as error:
                    if tries == MAX_TRIES:
                        raise
                    await self._make_room(replica, load, plan, error)
        except ServiceError as error:
            if not isinstance(error, UnavailableError) and not load.failed.done():
                load.failed.set_result(error)
            raise
        raise AssertionError("the loop ends by itself")

    async def _make_room(
        self, replica: Replica, load: Load, plan: _Plan, error: OutOfMemoryError
    ) -> None:
        """Evicts models after a load has not fitted, or waits for a load that is in its way.

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
            if load.failed.done():  # on another replica: nothing is evicted any more
                raise load.failed.result()
            choice = await self._evictor.make_room(need, load.evicted)
        if choice.enough:
            return
        if choice.waits_for:
            ended = asyncio.create_task(self._evictor.ended(choice.waits_for))
            try:
                await asyncio.wait((ended, load.failed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
            if load.failed.done():  # it must not wait for others when it keeps no room from them
                raise load.failed.result()
            return
        load.has_no_room = not any(stay.resident.stays for stay in choice.stays)
        holders = describe(choice.stays)
        message = f"{error.message}. {holders}" if holders else error.message
        raise OutOfMemoryError(message, metadata=error.metadata)

    async def _undo(self, load: Load, plan: _Plan, error: BaseException) -> None:
        """After a load that failed: restores the desired models, frees what was loaded."""
        # The load that its caller had asked for, which went on after a restart of this service.
        first_failed = isinstance(error, ServiceError) and not isinstance(error, UnavailableError)
        if plan.before and not (plan.before.loading and first_failed):
            await self._desired.put_back(plan.before)
            if plan.before.evicted:
                told = evicted_restore(plan.before.model_id, plan.before.evicted_why)
                await self._free(plan.before.model_id, plan.missing, told)
        else:
            await self._desired.remove(plan.desired.model_id)
            await self._free(plan.desired.model_id, plan.missing)
        await self._evictor.bring_back(load.evicted, load.why)

    async def _free(
        self, model_id: ModelId, replicas: Sequence[Replica], told: Restore | None = None
    ) -> None:
        """Frees what a load that failed has left on replicas; `told` as in `Replica.unload`."""
        try:
            async with asyncio.timeout(FREE_SECONDS):
                _, errors = await gather_outcomes(
                    replica.unload(model_id, told=told) for replica in replicas
                )
        except TimeoutError:
            errors = [UnavailableError(f"a replica did not free a model within {FREE_SECONDS:g} s")]
        for error in errors:
            if not isinstance(error, ModelNotLoadedError | WorkerUnavailableError):
                log.warning("cannot clean up after a failed load", extra={"error": error.message})


def service_of(model: DesiredModel) -> ServiceName:
    """The service that runs a model.

    Raises:
        UnknownPipelineError: its type is of another version.
    """
    return find_pipeline(model.pipeline_type).service


def serves(replica: Replica, model: DesiredModel) -> bool:
    """Whether a model belongs on this replica; false for a type that this version does not know."""
    try:
        return replica.service == service_of(model)
    except UnknownPipelineError:
        return False


def check_type(loaded: str, model: DesiredModel) -> None:
    """Raises PipelineMismatchError if a model is loaded with another type than is asked for."""
    if loaded != model.pipeline_type:
        raise PipelineMismatchError(
            f"model {model.model_id!r} is loaded as {loaded}, not {model.pipeline_type}; "
            "unload it first"
        )


def ready_in(models: Iterable[ReplicaModel], model_id: ModelId) -> ReplicaModel | None:
    """A model among those of a replica, if it is READY there."""
    return next((each for each in models if each.model_id == model_id and each.ready), None)
