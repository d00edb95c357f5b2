"""What is known of every model: what the replicas hold, what is desired, and what has failed."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from model_mgmt_svc.demand import Demand
from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.file_models import Waiting
from model_mgmt_svc.life_options import NEVER
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.reconciler import Reconciler
from model_mgmt_svc.replicas import Replica, ReplicaModel
from shared.errors import UnknownPipelineError
from shared.model_host import ModelState, Restore
from shared.model_ids import ModelId
from shared.pipelines import find_pipeline


class StatusState(enum.Enum):
    """Where a model is in its life; the names are those of `ml.ModelState`."""

    PENDING = "pending"
    FETCHING = "fetching"
    CONVERTING = "converting"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"
    EVICTED = "evicted"


# A model is in the first of these states that one of its replicas has it in.
_BY_PROGRESS = (
    *(ModelState.READY, ModelState.LOADING, ModelState.CONVERTING, ModelState.FETCHING),
    *(ModelState.UNLOADING, ModelState.FAILED),
)


@dataclass(frozen=True)
class ModelStatus:
    """One model over all replicas. Memory in bytes, times in Unix seconds.

    Attributes:
        pipeline_type: the canonical name.
        desired: whether it is loaded again when it is lost.
        bytes_fetched: of its files, on the replica that has come farthest.
        bytes_total: of the files known so far; 0 while unknown.
        reason: why it is FAILED, failed last, or is EVICTED.
        next_try_seconds: until it is tried again; None if no try is planned.
        loaded_at: since when the first replica holds it; 0 until READY.
        last_used_at: when its last call began or ended; 0 if it has had none.
        calls_in_flight: calls and streams that it answers now.
        replicas_ready: replicas on which it is READY.
        replicas: replicas of its service that answer.
        replicas_drained: those among them that somebody has drained: they take no calls.
        engine: what runs it; empty until READY.
        pinned, keep_alive_seconds, evict, priority, aliases: its options of life, as they hold; not
            of a model that is not desired.
        sources: who asks for it, see `DesiredModel.sources`.
        load_share: share of its weights that was read, while LOADING; None where it is not known.
        calls_waiting: calls that wait until it is loaded for them.
        weights_bytes: of its weights; they and `cache_bytes` are parts of its memory.
        cache_bytes: what its key-value caches have taken so far, of `cache_limit_bytes`.
    """

    model_id: ModelId
    pipeline_type: str
    state: StatusState
    desired: bool = False
    bytes_fetched: int = 0
    bytes_total: int = 0
    reason: str = ""
    next_try_seconds: float | None = None
    ram_bytes: int = 0
    vram_bytes: int = 0
    loaded_at: int = 0
    last_used_at: float = 0.0
    calls_in_flight: int = 0
    replicas_ready: int = 0
    replicas: int = 0
    replicas_drained: int = 0
    engine: str = ""
    pinned: bool = False
    keep_alive_seconds: float = 0.0
    evict: str = ""
    priority: int = 0
    aliases: Sequence[ModelId] = ()
    sources: Sequence[str] = ()
    load_share: float | None = None
    calls_waiting: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    weights_bytes: int = 0
    cache_bytes: int = 0
    cache_limit_bytes: int = 0

    def differs(self, other: ModelStatus) -> bool:
        """Whether there is news beside the time that passes until the next try."""
        timeless = replace(self, next_try_seconds=None), replace(other, next_try_seconds=None)
        retries = self.next_try_seconds is None, other.next_try_seconds is None
        return timeless[0] != timeless[1] or retries[0] != retries[1]


class ModelStates:
    """Puts together what the parts of the control plane know of each model.

    Args:
        desired: the desired models.
        lifecycle: the loads in flight, those that failed, and the replicas' models.
        reconciler: when a failed model is tried again.
        keep_alive: the default of this option of life.
        waiting: the models of the file of desired models that cannot be desired yet.
        demand: the models that calls wait for.
    """

    def __init__(
        self,
        desired: DesiredModels,
        lifecycle: Lifecycle,
        reconciler: Reconciler,
        keep_alive: float = NEVER,
        waiting: Callable[[], Mapping[ModelId, Waiting]] = dict,
        demand: Demand | None = None,
    ) -> None:
        self._waiting = waiting
        self._keep_alive = keep_alive
        self._desired = desired
        self._lifecycle = lifecycle
        self._reconciler = reconciler
        self._demand = demand

    async def all(self) -> dict[ModelId, ModelStatus]:
        """The status of every model, ordered by id."""
        models_of = await self._lifecycle.models()
        desired = {model.model_id: model for model in self._desired.all()}
        loading = {model.model_id: model for model in self._lifecycle.loading()}
        failed = {each.model.model_id: each for each in self._lifecycle.failed()}
        held = _by_id(models_of)
        known = {each.model_id: each for each in (self._demand.wanted() if self._demand else ())}
        known |= {each.model_id: each for each in _first_held(held)}
        known |= {model_id: each.model for model_id, each in failed.items()} | desired | loading
        statuses = {}
        for model_id, model in sorted(known.items()):
            status = ModelStatus(
                model_id,
                model.pipeline_type,
                StatusState.PENDING,
                desired=model_id in desired,
                replicas=len(serving := _replicas_for(model, models_of)),
                replicas_drained=sum(replica.drained for replica in serving),
                options=dict(model.options),
                calls_waiting=sum(each.waiting_calls.get(model_id, 0) for each in models_of),
            )
            if model_id in desired:
                status = _wished(status, desired[model_id], self._keep_alive)
            if model_id in desired and desired[model_id].evicted:
                reason = f"it was evicted {desired[model_id].evicted_why}"
                status = replace(status, state=StatusState.EVICTED, reason=reason)
            if model_id in failed:
                reason = failed[model_id].error.message
                status = replace(status, state=StatusState.FAILED, reason=reason)
            if retry := self._reconciler.retry(model_id):
                status = _retried(status, retry)
            if model_id in loading:
                status = replace(status, state=StatusState.FETCHING, next_try_seconds=None)
            if model_id in held:
                status = _over(status, held[model_id])
            statuses[model_id] = status
        for model_id, waiting in self._waiting().items():
            statuses.setdefault(model_id, _waits(model_id, waiting))
        return dict(sorted(statuses.items()))


def _by_id(
    models_of: Mapping[Replica, Iterable[ReplicaModel]],
) -> dict[ModelId, list[ReplicaModel]]:
    held: dict[ModelId, list[ReplicaModel]] = {}
    for models in models_of.values():
        for model in models:
            held.setdefault(model.model_id, []).append(model)
    return held


def _first_held(held: Mapping[ModelId, Sequence[ReplicaModel]]) -> Iterator[DesiredModel]:
    """The models of replicas as if they were desired; those that only failed there are left out."""
    for model_id, models in held.items():
        for model in models:
            if model.state is not ModelState.FAILED:
                yield DesiredModel(model_id, model.pipeline_type, model.options)
                break


def _replicas_for(model: DesiredModel, models_of: Iterable[Replica]) -> list[Replica]:
    try:
        service = find_pipeline(model.pipeline_type).service
    except UnknownPipelineError:  # noted by another version
        return []
    return [replica for replica in models_of if replica.service == service]


def _wished(status: ModelStatus, model: DesiredModel, keep_alive: float) -> ModelStatus:
    """The status with the model's options of life."""
    life = model.life_in_effect(keep_alive)
    return replace(
        status,
        pinned=life.pin,
        keep_alive_seconds=life.keep_alive_seconds,
        evict=life.evict,
        priority=life.priority,
        aliases=life.aliases,
        sources=model.sources,
    )


def _waits(model_id: ModelId, waiting: Waiting) -> ModelStatus:
    return ModelStatus(
        model_id,
        waiting.pipeline_type,
        StatusState.FAILED,
        desired=True,
        reason=waiting.reason,
        next_try_seconds=waiting.next_try_seconds,
        sources=("file",),
    )


def _retried(status: ModelStatus, retry: Restore) -> ModelStatus:
    return replace(
        status,
        state=StatusState.PENDING
        if not (retry.wait_seconds or retry.given_up)
        else StatusState.FAILED,
        reason=retry.reason,
        next_try_seconds=None if retry.given_up else retry.wait_seconds,
    )


def _over(status: ModelStatus, models: Sequence[ReplicaModel]) -> ModelStatus:
    """The status with what the replicas say of the model."""
    states = {model.state for model in models}
    state = next(each for each in _BY_PROGRESS if each in states)
    ready = [model for model in models if model.ready]
    if state is not ModelState.FAILED:
        status = replace(status, state=StatusState[state.name])
    elif status.state is StatusState.PENDING and status.next_try_seconds is None:
        reason = next(model.reason for model in models)
        status = replace(status, state=StatusState.FAILED, reason=reason)
    ahead = max(models, key=lambda model: model.bytes_fetched)
    shares = [each.load_share for each in models if each.load_share is not None]
    return replace(
        status,
        reason="" if ready else status.reason,
        next_try_seconds=None if ready else status.next_try_seconds,
        bytes_fetched=ahead.bytes_fetched,
        bytes_total=ahead.bytes_total,
        ram_bytes=sum(model.ram_bytes for model in ready),
        vram_bytes=sum(model.vram_bytes for model in ready),
        loaded_at=min((model.loaded_at for model in ready), default=0),
        last_used_at=max(model.last_used_at for model in models),
        calls_in_flight=sum(model.calls for model in models),
        load_share=max(shares, default=None) if state is ModelState.LOADING else None,
        replicas_ready=len(ready),
        engine=ready[0].engine if ready else "",
        options=dict(ready[0].options) if ready else status.options,
        weights_bytes=sum(model.weights_bytes for model in ready),
        cache_bytes=sum(model.cache_bytes for model in ready),
        cache_limit_bytes=sum(model.cache_limit_bytes for model in ready),
    )
