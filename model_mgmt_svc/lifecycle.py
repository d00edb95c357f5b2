"""Loading, unloading and listing models over the replicas of the services that hold them."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from model_mgmt_svc.calls import settle, to_its_end
from model_mgmt_svc.desired import (
    Wish,
    WishStore,
)
from model_mgmt_svc.loaded_model import LoadedModel
from model_mgmt_svc.replicas import (
    CONNECT_SECONDS,
    HeldModel,
    Worker,
    Workers,
)
from shared.errors import (
    ModelNotLoadedError,
    PipelineMismatchError,
    ServiceError,
    UnavailableError,
    UnknownPipelineError,
    WorkerUnavailableError,
)
from shared.model_ids import ModelId
from shared.pipelines import ServiceName, find_pipeline
from shared.single_flight import SharedWork, SingleFlight

log = logging.getLogger(__name__)

# What has to be freed is waited for so long at most: a worker may hang.
FREE_SECONDS = 30.0


class _Load(SharedWork[LoadedModel]):
    """A load under way, for all who have asked for it.

    Attributes:
        wish: what is loaded.
        asked: false while only the wish that is written down calls for it.
    """

    def __init__(self, wish: Wish) -> None:
        super().__init__()
        self.wish = wish
        self.asked = False


class Lifecycle:
    """What happens to models, one thing at a time for each of them.

    Args:
        workers: the replicas that hold models.
        wishes: where the wanted models are written down.
        refresh: makes the files of a model those that its source has now.
    """

    def __init__(
        self, workers: Workers, wishes: WishStore, refresh: Callable[[ModelId], Awaitable[None]]
    ) -> None:
        self._workers = workers
        self._wishes = wishes
        self._refresh = refresh
        self._loads: SingleFlight[str, _Load] = SingleFlight()
        self._unloads: set[asyncio.Task[int]] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def aclose(self) -> None:
        """Cancels the loads that are under way and lets the unloads come to their end."""
        await self._loads.close()
        if self._unloads:
            await asyncio.wait(self._unloads, timeout=FREE_SECONDS)

    async def load(self, wish: Wish) -> LoadedModel:
        """Makes a model wanted and loads it on every replica of its service that is up.

        Callers that ask for the same model at once wait for one load; it is cancelled when the
        last of them is. A load that fails leaves nothing wanted that was not wanted before. Files
        that were published anew are fetched where no replica holds the model; else all have the
        same ones.

        Raises:
            PipelineMismatchError: it is loaded, or being loaded, with another type.
            WorkerUnavailableError: no replica is up, or the one that loaded went away.
            CallCancelledError: it was unloaded meanwhile.
            What a worker raised, and `ModelFiles.refresh`.
        """
        with self._loads.join(wish.model_id, lambda: self._start(wish)) as load:
            _check_type(load.wish.pipeline_type, wish)
            load.asked = True
            return await load.finished()

    def is_asked_for(self, model_id: str) -> bool:
        """Whether a load is under way that a caller waits for."""
        load = self._loads.get(model_id)
        return load is not None and load.asked

    async def restore(self, wish: Wish) -> LoadedModel | None:
        """Loads a model where it is missing, unless it is not wanted any more by now.

        Returns None where a caller's load is under way: that one ends with its callers.

        Raises:
            ModelNotLoadedError: it is not wanted any more.
            As `load`.
        """
        if self.is_asked_for(wish.model_id):
            return None
        with self._loads.join(wish.model_id, lambda: self._start(wish)) as load:
            return await load.finished()

    async def unload(self, model_id: str) -> int:
        """Takes a wish back and frees the model; returns the number of replicas that held it.

        A load under way is cancelled. Once begun it is done to the end, whoever goes away.

        Raises:
            ModelNotLoadedError: it was neither loaded nor wanted.
            What a worker raised.
        """
        task = asyncio.create_task(self._unload(model_id))
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)
        return await asyncio.shield(task)

    async def loaded(self) -> list[LoadedModel]:
        """The models in memory, by id, as the replicas that are up say."""
        by_id: dict[str, list[HeldModel]] = defaultdict(list)
        for held in (await self._held(self._workers.all())).values():
            for model in held:
                if model.ready:
                    by_id[model.model_id].append(model)
        return [LoadedModel.over(by_id[model_id]) for model_id in sorted(by_id)]

    async def lacking(self, wishes: Iterable[Wish]) -> dict[Worker, list[Wish]]:
        """For each replica that is up, the wishes for models that it should hold and does not."""
        wishes = list(wishes)
        return {
            worker: [
                wish
                for wish in wishes
                if _serves(worker, wish) and _ready(models, wish.model_id) is None
            ]
            for worker, models in (await self._held(self._workers.all())).items()
        }

    def _start(self, wish: Wish) -> _Load:
        load = _Load(wish)
        load.task = asyncio.create_task(self._load(load))
        return load

    async def _load(self, load: _Load) -> LoadedModel:
        wish = load.wish
        async with self._lock(wish.model_id):
            before = await self._wishes.get(wish.model_id)
            if before is None and not load.asked:
                raise ModelNotLoadedError(f"model {wish.model_id!r} is not wanted any more")
            replicas = await self._replicas(wish)
            lacking = [worker for worker, model in replicas.items() if model is None]
            if load.asked and len(lacking) == len(replicas):
                await self._refresh(ModelId(wish.model_id))
            note = ""
            if before and len(lacking) < len(replicas):  # a loaded model keeps its options
                note = _kept_options(before, wish)
                wish = before
            if lacking or before is None:
                await self._wishes.put(wish)
            try:
                loaded = await self._load_on(lacking, wish)
            except BaseException:
                await to_its_end(self._undo(wish, before, lacking))
                raise
            model = LoadedModel.over([*loaded, *(model for model in replicas.values() if model)])
            return replace(model, note=note or model.note)

    async def _replicas(self, wish: Wish) -> dict[Worker, HeldModel | None]:
        """The replicas that are up, with the model where they hold it already."""
        await self._workers.refresh()
        service = _service(wish)
        held = await self._held(self._workers.all())
        if not any(worker.service == service for worker in held):
            held |= await self._held(self._workers.of(service), CONNECT_SECONDS)
        for models in held.values():
            if model := _ready(models, wish.model_id):
                _check_type(model.pipeline_type, wish)
        replicas = {
            worker: _ready(models, wish.model_id)
            for worker, models in held.items()
            if worker.service == service
        }
        if not replicas:
            raise WorkerUnavailableError(
                f"{service}_svc, which runs {wish.pipeline_type} models, is not reachable"
            )
        return replicas

    async def _undo(self, wish: Wish, before: Wish | None, workers: Sequence[Worker]) -> None:
        """After a load that failed: what was wanted before is wanted, and nothing else."""
        if before:
            await self._wishes.put(before)
            return
        await self._wishes.remove(wish.model_id)
        try:
            async with asyncio.timeout(FREE_SECONDS):
                _, errors = await settle(worker.unload(wish.model_id) for worker in workers)
        except TimeoutError:
            errors = [UnavailableError(f"a worker frees nothing for {FREE_SECONDS:g} s")]
        for error in errors:
            if not isinstance(error, ModelNotLoadedError | WorkerUnavailableError):
                log.warning("a failed load is not cleaned up", extra={"error": error.message})

    async def _load_on(self, workers: Sequence[Worker], wish: Wish) -> list[HeldModel]:
        """Loads on each; replicas that go away meanwhile do not matter while one is left."""
        loads = (worker.load(wish.model_id, wish.pipeline_type, wish.options) for worker in workers)
        models, errors = await settle(loads)
        for error in errors:
            if not models or not isinstance(error, UnavailableError):
                raise error
        return models

    async def _unload(self, model_id: str) -> int:
        load = self._loads.get(model_id)
        if load:
            self._loads.stop(model_id, load)
        async with self._lock(model_id):
            wanted = await self._wishes.remove(model_id)
            held = await self._held(self._workers.all())
            holders = [worker for worker, models in held.items() if model_id in _ids(models)]
            if not (holders or wanted or load):
                raise ModelNotLoadedError(f"model {model_id!r} is not loaded")
            _, errors = await settle(worker.unload(model_id) for worker in holders)
            for error in errors:
                if not isinstance(error, ModelNotLoadedError):
                    raise error
            return len(holders)

    async def _held(
        self, workers: Sequence[Worker], wait_seconds: float = 0
    ) -> dict[Worker, list[HeldModel]]:
        """What each of the workers holds that answers; the others are left out."""
        answers = await asyncio.gather(
            *(worker.list(wait_seconds) for worker in workers), return_exceptions=True
        )
        held = {}
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, list):
                held[worker] = answer
            elif not isinstance(answer, ServiceError):
                raise answer
            elif not isinstance(answer, UnavailableError):
                log.error("a worker does not list its models", extra={"error": answer.message})
        return held

    def _lock(self, model_id: str) -> asyncio.Lock:
        return self._locks.setdefault(model_id, asyncio.Lock())


def _service(wish: Wish) -> ServiceName:
    return find_pipeline(wish.pipeline_type).service


def _serves(worker: Worker, wish: Wish) -> bool:
    """Whether a model is for this worker; a type that this version does not know is for none."""
    try:
        return worker.service == _service(wish)
    except UnknownPipelineError:
        return False


def _check_type(loaded: str, wish: Wish) -> None:
    if loaded != wish.pipeline_type:
        raise PipelineMismatchError(
            f"model {wish.model_id!r} is loaded as {loaded}, not {wish.pipeline_type}; "
            "unload it first"
        )


def _kept_options(before: Wish, asked: Wish) -> str:
    """What whoever asks for other options of a loaded model is told."""
    if not asked.options or asked.options == before.options:
        return ""
    kept = ", ".join(f"{name}={value}" for name, value in sorted(before.options.items()))
    return f"It keeps the options of its first load ({kept or 'none'}); unload it to change them"


def _ids(models: Iterable[HeldModel]) -> set[str]:
    return {model.model_id for model in models}


def _ready(models: Iterable[HeldModel], model_id: str) -> HeldModel | None:
    return next((each for each in models if each.model_id == model_id and each.ready), None)
