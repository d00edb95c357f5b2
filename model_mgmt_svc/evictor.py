"""Takes models out of memory so that others get their place, over all replicas."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from prometheus_client import Counter

from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.eviction import Choice, Rank, Resident, choose
from model_mgmt_svc.outcomes import run_to_completion
from model_mgmt_svc.replicas import Replica, ReplicaModel, Replicas, list_models
from shared.errors import ModelNotLoadedError, ServiceError, WorkerUnavailableError
from shared.model_host import ModelState, Restore
from shared.model_ids import ModelId

log = logging.getLogger(__name__)

# Longest wait for a replica to free a model; it may hang.
FREE_SECONDS = 30.0

EVICTIONS = Counter("model_mgmt_evictions", "Models taken out of memory.", ["model"])


# How a load sees another model: as one that stays for a reason of the load's own, for example.
View = Callable[[Resident], Resident]


def as_it_is(resident: Resident) -> Resident:
    """Lets any idle model go."""
    return resident


@dataclass(frozen=True)
class Need:
    """What a load needs on a replica.

    Attributes:
        needs: bytes by device.
        others: the other replicas that load it, and need about as much.
        below: only models of a lower rank may go for it; None if a caller has asked for it.
        view: how it sees other models.
    """

    model_id: ModelId
    replica: Replica
    needs: Mapping[str, int]
    others: Sequence[Replica] = ()
    below: Rank | None = None
    view: View = as_it_is


class Evictor:
    """Evicts idle models; each is an operation on the model, which its lock keeps from others.

    An evicted model stays desired, unless its option says evict=forget, and is not loaded again
    before somebody asks for it.

    Args:
        replicas: the processes that hold models.
        desired: the record of the desired models.
        lock: the lock of a model.
        is_loading: whether a load of a model is in flight.

    Attributes:
        making_room: held by who calls `make_room`.
    """

    def __init__(
        self,
        replicas: Replicas,
        desired: DesiredModels,
        lock: Callable[[ModelId], asyncio.Lock],
        is_loading: Callable[[ModelId], bool],
    ) -> None:
        self._replicas = replicas
        self._desired = desired
        self._lock = lock
        self._is_loading = is_loading
        self.making_room = asyncio.Lock()
        # What is kept for loads that have not reserved it yet, on all replicas: of two loads with
        # room for one, the first gets it everywhere.
        self._claims: dict[ModelId, dict[Replica, Mapping[str, int]]] = {}

    async def evict(self, model_id: ModelId, why: str, *, idle_within: float = 0) -> bool:
        """Takes a model out of memory on all replicas, if it answers no calls on any of them.

        No call comes in between: a replica refuses if one has. Then the model stays, and where it
        is gone already the reconciler loads it again.

        Args:
            model_id: the model.
            why: what follows "was evicted", as in "to make room for org/name".
            idle_within: seconds for which it takes no calls until those in flight have ended. If
                they have not by then, it takes calls again.

        Returns:
            Whether it is out of memory; false also if another operation on it is in flight.
        """
        lock = self._lock(model_id)
        if lock.locked() or self._is_loading(model_id):
            return False
        async with lock:
            done = await run_to_completion(self._evict(model_id, why, idle_within))
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError
        return done

    async def look(self, need: Need) -> Choice:
        """What `make_room` would do now, without doing it."""
        models_of = await list_models(self._replicas.all())
        return self._choose(need, models_of, {}) if need.replica in models_of else Choice()

    async def make_room(self, need: Need, evicted: list[DesiredModel]) -> Choice:
        """Evicts models until a load fits into a replica, if they can make enough room together.

        The room is kept for the load until `release`, unless there is not enough. Another load that
        has not asked for room may take it all the same, since a replica gives what is free to who
        comes first. Such a load is refused on other replicas, or makes room itself once it is
        loaded: its end is to be waited for. Only loads for which room is kept wait, and never for
        another such load, so no two wait for each other.

        Args:
            need: the load.
            evicted: gets the models' entries before they are evicted.

        Returns:
            The last choice: `enough` says whether there is room, and else `stays` why not. If it
            `waits_for` models, the load is to be tried again once they have `ended`.
        """
        why = to_make_room_for(need.model_id)
        was_kept = need.model_id in self._claims
        called: dict[ModelId, str] = {}
        claims = self._claims.setdefault(need.model_id, {})
        claims.update((each, need.needs) for each in need.others if each not in claims)
        claims[need.replica] = need.needs
        while True:
            models_of = await list_models(self._replicas.all())
            if need.replica not in models_of:
                return Choice()  # the load finds out that it is gone
            choice = self._choose(need, models_of, called)
            for victim in choice.victims:
                if before := self._desired.get(victim.model_id):
                    evicted.append(before)
                if not await self.evict(victim.model_id, why):
                    called[victim.model_id] = "was called just now"
                    break
            else:
                if choice.enough:
                    return choice
                if was_kept or _has_begun(need, models_of):
                    choice = replace(choice, waits_for=self._passing(need, models_of, called))
                if not choice.waits_for:
                    self.release(need.model_id)
                return choice

    async def ended(self, model_ids: Iterable[ModelId]) -> None:
        """Waits for the ends of the operations on these models that are in flight."""
        for model_id in model_ids:
            async with self._lock(model_id):
                pass

    def release(self, model_id: ModelId) -> None:
        """A load has ended: no room is kept for it any more."""
        self._claims.pop(model_id, None)

    async def bring_back(self, evicted: Iterable[DesiredModel], why: str) -> None:
        """Has the reconciler load models again that were evicted for nothing.

        Args:
            evicted: their entries before.
            why: as they were evicted; what was evicted otherwise since, or is desired no longer,
                stays so.
        """
        for before in evicted:
            if self.has_gone(before, why):
                now = self._desired.get(before.model_id) or before
                await self._desired.put_back(replace(now, evicted_why=""))

    def has_gone(self, before: DesiredModel, why: str) -> bool:
        """Whether a model with this entry before is evicted for that reason, or forgotten."""
        now = self._desired.get(before.model_id)
        return _is_forgotten(before) if now is None else now.evicted_why == why

    async def give_up(self, model_id: ModelId) -> None:
        """Makes a model count as evicted that has lost its place, unless a replica holds it."""
        models_of = await list_models(self._replicas.all())
        held = any(model.model_id == model_id and model.ready for model in _all(models_of))
        model = self._desired.get(model_id)
        if model and not held and not self._lock(model_id).locked():
            if _is_forgotten(model):
                await self._desired.remove(model_id)
            else:
                why = "since there was no room for it"
                await self._desired.put(replace(model, evicted_why=why))
            EVICTIONS.labels(model_id).inc()
            log.warning("a model does not fit into memory any more", extra={"model_id": model_id})

    async def finish(self) -> None:
        """Evicts models that the record says are evicted and that replicas hold all the same, and
        forgets those that are to be.

        So it is after the death of this service in between, or on a replica that did not answer.
        """
        evicted = {model.model_id: model for model in self._desired.all() if model.evicted}
        if not evicted:
            return
        models = list(_all(await list_models(self._replicas.all())))
        for model in models:
            if model.ready and model.model_id in evicted:
                await self.evict(model.model_id, evicted[model.model_id].evicted_why)
        for model_id in evicted.keys() - {model.model_id for model in models}:
            now = self._desired.get(model_id)
            busy = self._lock(model_id).locked() or self._is_loading(model_id)
            if now and now.evicted and _is_forgotten(now) and not busy:
                await self._desired.remove(model_id)

    async def _evict(self, model_id: ModelId, why: str, idle_within: float) -> bool:
        models_of = await list_models(self._replicas.all())
        held = {
            replica: model
            for replica, models in models_of.items()
            for model in models
            if model.model_id == model_id
        }
        if not idle_within and any(model.calls for model in held.values()):
            return False
        # First in the record: nobody loads it again in between.
        before = self._desired.get(model_id)
        if before:
            await self._desired.put(replace(before, evicted_why=why))
        told = evicted_restore(model_id, why)
        freed = await asyncio.gather(*(_free_on(replica, told, idle_within) for replica in held))
        if not all(freed):
            await self.bring_back([before] if before else [], why)
            return False
        if before and _is_forgotten(before):
            await self._desired.remove(model_id)
        EVICTIONS.labels(model_id).inc()
        log.info("model evicted", extra={"model_id": model_id, "why": why, "replicas": len(held)})
        return True

    def _choose(
        self,
        need: Need,
        models_of: Mapping[Replica, Sequence[ReplicaModel]],
        called: Mapping[ModelId, str],
    ) -> Choice:
        return _choose_of(need, list(self._residents(need, models_of, called)))

    def _passing(
        self,
        need: Need,
        models_of: Mapping[Replica, Sequence[ReplicaModel]],
        called: Mapping[ModelId, str],
    ) -> list[ModelId]:
        """The models with an operation in flight for which no room is kept.

        Empty if there would not be room without them.
        """
        passing, others = [], []
        for each in self._residents(need, models_of, called):
            if each.model_id not in self._claims and self._lock(each.model_id).locked():
                passing.append(each.model_id)
            else:
                others.append(each)
        return passing if _choose_of(need, others).enough else []

    def _residents(
        self,
        need: Need,
        models_of: Mapping[Replica, Sequence[ReplicaModel]],
        called: Mapping[ModelId, str],
    ) -> Iterator[Resident]:
        """The other models that hold memory of the replica, or for which it is kept."""
        everywhere: dict[ModelId, list[ReplicaModel]] = {}
        for model in _all(models_of):
            everywhere.setdefault(model.model_id, []).append(model)
        here = {model.model_id: model.reserved for model in models_of[need.replica]}
        kept = {
            model_id: claims[need.replica]
            for model_id, claims in self._claims.items()
            if need.replica in claims
        }
        for model_id in (here.keys() | kept.keys()) - {need.model_id}:
            reserved, claim = here.get(model_id, {}), kept.get(model_id, {})
            models = everywhere.get(model_id, [])
            stays = self._operation(model_id, models) or called.get(model_id, "")
            yield Resident(
                model_id,
                {
                    device: max(reserved.get(device, 0), claim.get(device, 0))
                    for device in reserved.keys() | claim.keys()
                },
                min((model.idle_seconds for model in models), default=0.0),
                sum(model.calls for model in models),
                rank_of(self._desired.get(model_id)),
                self._is_evictable(model_id),
                stays,
            )

    def _is_evictable(self, model_id: ModelId) -> bool:
        model = self._desired.get(model_id)
        return model is None or model.life.evict != "none"

    def _operation(self, model_id: ModelId, models: Iterable[ReplicaModel]) -> str:
        """What goes on with a model, as in "is being loaded"; empty if nothing does."""
        states = {model.state for model in models}
        if ModelState.UNLOADING in states:
            return "is being unloaded"
        if self._is_loading(model_id) or states - {ModelState.READY, ModelState.FAILED}:
            return "is being loaded"
        if not (self._desired.complete or self._desired.get(model_id)):
            return "is not in the record of desired models yet"
        return "is being loaded or unloaded" if self._lock(model_id).locked() else ""


def rank_of(model: DesiredModel | None) -> Rank:
    """How much the wish for a model weighs; one that is not desired has the least."""
    if model is None:
        return Rank(priority=-sys.maxsize)
    return Rank(model.life.pin, model.life.priority)


def _is_forgotten(model: DesiredModel) -> bool:
    """Whether it is no longer desired when it is evicted."""
    return model.life.evict == "forget"


def to_make_room_for(model_id: ModelId) -> str:
    """Why models are evicted for another."""
    return f"to make room for {model_id}"


def evicted_restore(model_id: ModelId, why: str) -> Restore:
    """What the callers of an evicted model are told."""
    return Restore(model_id, reason=f"was evicted {why}", evicted=True)


def _all(models_of: Mapping[Replica, Iterable[ReplicaModel]]) -> Iterator[ReplicaModel]:
    return itertools.chain.from_iterable(models_of.values())


def _has_begun(need: Need, models_of: Mapping[Replica, Iterable[ReplicaModel]]) -> bool:
    """Whether the load has its memory on another replica already."""
    others = (models_of.get(each, ()) for each in need.others if each is not need.replica)
    models = itertools.chain.from_iterable(others)
    return any(model.model_id == need.model_id and model.reserved for model in models)


def _choose_of(need: Need, residents: Sequence[Resident]) -> Choice:
    free = _free(need.replica, residents)
    return choose(need.needs, free, map(need.view, residents), need.below)


def _free(replica: Replica, residents: Iterable[Resident]) -> dict[str, int]:
    """Bytes of each device that the other models leave free."""
    taken = list(residents)
    return {
        device: pool.budget_bytes - sum(each.reserved.get(device, 0) for each in taken)
        for device, pool in replica.memory.items()
    }


async def _free_on(replica: Replica, told: Restore, idle_within: float) -> bool:
    """Frees a model on a replica if it is idle there; returns whether it is gone."""
    try:
        async with asyncio.timeout(FREE_SECONDS + idle_within):
            return await replica.unload(
                told.model_id, if_idle=True, idle_within=idle_within, told=told
            )
    except (ModelNotLoadedError, WorkerUnavailableError):
        return True  # its process is gone, or the replica with all of them
    except TimeoutError:
        error = f"the replica did not free it within {FREE_SECONDS + idle_within:g} s"
    except ServiceError as failure:
        error = failure.message
    log.warning("cannot evict a model", extra={"model_id": told.model_id, "error": error})
    return False
