"""The models of this service, one process each, from FETCHING until they are unloaded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Self

from shared.errors import (
    ModelNotLoadedError,
    PipelineMismatchError,
    ServiceError,
    WorkerUnavailableError,
)
from shared.files.client import ModelFiles
from shared.model_host import (
    LoadProgress,
    MemoryPool,
    ModelState,
    Restores,
    follow_load,
    steady,
)
from shared.model_ids import ModelId
from shared.pipelines import TEXT_PIPELINES, Pipeline, find_pipeline
from shared.rpc.admission import Admission
from text_svc.models.absence import absence
from text_svc.models.demand import Demand
from text_svc.models.engine_choice import effective_options, wanted_engine
from text_svc.models.loader import Loader
from text_svc.models.model import ManagedModel
from text_svc.options import LoadOptions, parse_options
from text_svc.processes.fork_server import ForkServer
from text_svc.processes.model_process import ModelProcess
from text_svc.processes.scratch import FORK_SERVER, scratch_folder
from text_svc.processes.spawn import library_environment
from text_svc.settings import TextSettings

log = logging.getLogger(__name__)

# How often a call waits for its model: it may have been evicted again before the call could begin.
MAX_BRINGS = 5
# How long the memory figures of models may keep those waiting who ask for the models.
MEASURE_SECONDS = 0.25


class Registry:
    """Loads, unloads and lends models. An async context manager; its exit ends all processes.

    Args:
        settings: limits.
        files: the models' files.
        restores: what the control plane brings back, for messages to callers.
        admission: whether the control plane has admitted this replica; None counts as admitted.
        demand: brings models for calls, where the control plane says that it may; None never does.

    Attributes:
        ends: how often the process of a model "hung" or "died", by model and this word.
    """

    def __init__(
        self,
        settings: TextSettings,
        files: ModelFiles,
        restores: Restores | None = None,
        admission: Admission | None = None,
        demand: Demand | None = None,
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._restores = restores or Restores()
        self._demand = demand
        self._models: dict[ModelId, ManagedModel] = {}
        self.ends: Counter[tuple[ModelId, str]] = Counter()
        self._watchers: set[asyncio.Task[None]] = set()
        self._forks = ForkServer(library_environment(threads=1)) if settings.fork_server else None
        self._loader = Loader(settings, files, self._models.values, self._forks)
        self._folders = ExitStack()

    async def __aenter__(self) -> Self:
        scratch = await asyncio.to_thread(self._folders.enter_context, scratch_folder())
        self._loader.scratch = scratch
        if self._forks:
            await self._forks.start(scratch / FORK_SERVER)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._demand:
            await self._demand.aclose()
        await asyncio.gather(
            *(self._end(model) for model in list(self._models.values())), return_exceptions=True
        )
        for watcher in self._watchers:
            watcher.cancel()
        if self._forks:
            await self._forks.aclose()
        await asyncio.to_thread(self._folders.close)

    def memory(self) -> list[MemoryPool]:
        """The memory that all models together may use, and have reserved, by device."""
        return self._loader.budget.pools()

    def waiting_calls(self) -> Mapping[ModelId, int]:
        """How many calls wait until their model is loaded for them, by model."""
        return self._demand.waiting_calls() if self._demand else {}

    def models(self) -> list[ManagedModel]:
        """All models, whatever their state."""
        return list(self._models.values())

    async def measure(self) -> None:
        """Brings the memory figures of the models that are READY up to date.

        What takes longer than a moment goes on, for the next one who asks.
        """
        ready = [model for model in self._models.values() if model.state is ModelState.READY]
        tasks = {asyncio.create_task(_measure(model)) for model in ready}
        self._watchers |= tasks
        for task in tasks:
            task.add_done_callback(self._watchers.discard)
        if tasks:
            await asyncio.wait(tasks, timeout=MEASURE_SECONDS)

    async def load(
        self, model_id: ModelId, pipeline_type: str, options: Mapping[str, str]
    ) -> AsyncIterator[LoadProgress]:
        """Loads a model, or joins a load in progress. Reports its progress; READY comes last.

        When its last caller goes away, the load goes on for `abandoned_load_seconds`.

        Raises:
            PipelineMismatchError: it is loaded, or being loaded, with another type.
            ServiceError: why it could not be loaded.
        """
        pipeline, parsed = _checked(pipeline_type, options)
        while (known := self._models.get(model_id)) and known.state is ModelState.UNLOADING:
            assert known.ending is not None, "set together with the state"
            await asyncio.wait({known.ending})
        if known is None or known.state is ModelState.FAILED:
            again = known is not None and known.has_died
            known = ManagedModel(model_id, pipeline, dict(options), options=parsed, again=again)
            self._models[model_id] = known
            known.task = asyncio.create_task(self._load(known))
        elif known.pipeline is not pipeline:
            raise PipelineMismatchError(
                f"model {model_id} is loaded as {known.pipeline.name}, not as {pipeline.name}; "
                "unload it first"
            )
        async with aclosing(self._follow(known)) as reports:
            async for progress in reports:
                yield progress

    def check(self, pipeline_type: str, options: Mapping[str, str]) -> Mapping[str, str]:
        """All options that a load would have, with the values that "auto" stands for.

        Raises:
            InvalidArgumentError: the pipeline type or an option is not valid.
        """
        return effective_options(*_checked(pipeline_type, options))

    async def unload(
        self, model_id: ModelId, *, if_idle: bool = False, idle_within: float = 0
    ) -> bool:
        """Takes a model out of memory. A load in progress is cancelled; running calls get
        `unload_grace_seconds`.

        Continues if the caller is cancelled; a second unload of the same model joins the first.

        Args:
            if_idle: only if it is not `in_demand`.
            idle_within: with `if_idle`, seconds for which it takes no calls until those under way
                have ended; if they have not by then, or the caller is cancelled, it takes calls
                again.

        Returns:
            Whether it is out of memory.

        Raises:
            ModelNotLoadedError: the model is not loaded.
        """
        model = self._models.get(model_id)
        if model is None:
            raise ModelNotLoadedError(f"model {model_id} is not loaded")
        if if_idle and idle_within and model.calls:
            await self._close(model, idle_within)
        # From here until `_end` has changed the state nothing else runs: no call comes in between.
        if if_idle and model.in_demand:
            return False
        await self._end(model, self._settings.unload_grace_seconds)
        return True

    @asynccontextmanager
    async def use(self, model_id: ModelId, call: str) -> AsyncIterator[ModelProcess]:
        """Lends the process of a READY model for one call, an RPC of TransformersService.

        Raises:
            ModelNotLoadedError: it is not loaded, or not ready.
            WorkerUnavailableError: it was loaded, and is being loaded again.
            ServiceError: as `Demand.bring`, where models are loaded for the calls that need them.
            PipelineMismatchError: it is loaded with a type that does not answer this call.
        """
        tries = 0
        while (model := self._taking(model_id, call)) is None:
            if self._demand is None or not self._restores.auto_load:
                raise self._absence(model_id, self._models.get(model_id))
            if tries == MAX_BRINGS:
                raise WorkerUnavailableError(
                    f"model {model_id} was loaded {tries} times, and is not on this replica; it "
                    "may not be reachable for model_mgmt_svc",
                    retry_after=1.0,
                )
            tries += 1
            await self._demand.bring(model_id, call)
        model.idle.clear()
        process = model.process
        assert process is not None, "it is READY"
        try:
            with model.in_use():
                yield process
        finally:
            if not model.calls:
                model.idle.set()

    async def _close(self, model: ManagedModel, seconds: float) -> None:
        """Lets a model take no calls until those under way have ended, or the time is over.

        Whoever waits for its last call goes on before a new one can begin.
        """
        model.closed += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await model.idle.wait()
        finally:
            model.closed -= 1

    def _taking(self, model_id: ModelId, call: str) -> ManagedModel | None:
        """The model, if it is READY and takes calls.

        Raises:
            PipelineMismatchError: it is of a type that does not answer this call.
        """
        model = self._models.get(model_id)
        if model is None:
            return None
        if call not in model.pipeline.calls:
            needed = ", ".join(sorted(one.name for one in TEXT_PIPELINES if call in one.calls))
            raise PipelineMismatchError(
                f"model {model_id} is loaded as {model.pipeline.name}, which answers "
                f"{' and '.join(model.pipeline.calls)}; {call} needs one of {needed}"
            )
        takes = model.state is ModelState.READY and model.process and not model.closed
        return model if takes else None

    def _absence(self, model_id: ModelId, model: ManagedModel | None) -> ServiceError:
        settled = self._admission is None or (self._admission.admitted and self._restores.told)
        return absence(model_id, model, self._restores.get(model_id), settled=settled)

    async def _follow(self, model: ManagedModel) -> AsyncGenerator[LoadProgress]:
        task = model.task
        assert task is not None, "a model in the table has its task"
        model.waiters += 1
        if model.abandoning:
            model.abandoning.cancel()
        try:
            async for progress in follow_load(model, task):
                yield progress
        finally:
            model.waiters -= 1
            if not model.waiters and not task.done():
                model.abandoning = asyncio.create_task(self._abandon(model, task))
                self._watchers.add(model.abandoning)
                model.abandoning.add_done_callback(self._watchers.discard)

    async def _abandon(self, model: ManagedModel, load: asyncio.Task[None]) -> None:
        """Cancels a load if no caller comes back for it in time."""
        await asyncio.wait({load}, timeout=self._settings.abandoned_load_seconds)
        if not model.waiters and not load.done():
            log.info("load cancelled: no caller is left", extra={"model": model.model_id})
            await self._end(model)

    async def _load(self, model: ManagedModel) -> None:
        try:
            await self._loader.load(model)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            model.state, model.reserved = ModelState.FAILED, {}
            model.let_go()
            model.reason = error.message if isinstance(error, ServiceError) else "internal error"
            raise
        process = model.process
        assert process is not None, "set by the loader"
        model.vram_bytes = process.report.vram_bytes
        model.weights_bytes = process.report.weights_bytes
        await _measure(model)
        model.loaded_at = int(time.time())
        model.state = ModelState.READY
        log.info(
            "model ready",
            extra={
                "model": model.model_id,
                "engine": model.engine,
                "ram": model.ram_bytes,
                "weights": model.weights_bytes,
                "cache_limit": model.cache_limit_bytes,
                "pid": process.pid,
                "note": model.note,
                "seconds": model.seconds | process.report.seconds,
            },
        )
        for how in ("hung", "died"):
            self.ends[model.model_id, how] += 0  # a counter has to exist before it can increase
        watcher = asyncio.create_task(self._watch(model, process))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _watch(self, model: ManagedModel, process: ModelProcess) -> None:
        """Marks the model FAILED when its process ends by itself."""
        ended = await process.wait()
        if self._models.get(model.model_id) is model and model.state is ModelState.READY:
            model.state, model.reserved = ModelState.FAILED, {}
            model.let_go()
            model.reason = f"its process ended: {process.hung or ended}"
            self.ends[model.model_id, "hung" if process.hung else "died"] += 1
            log.error("model process ended", extra={"model": model.model_id, "how": ended})
            await process.stop()

    async def _end(self, model: ManagedModel, grace_seconds: float = 0) -> None:
        """Unloads a model once, even if several callers ask for it or are cancelled."""
        if model.ending is None:
            if model.state is not ModelState.FAILED:
                model.state = ModelState.UNLOADING
            if model.task:
                model.task.cancel()
            model.ending = asyncio.create_task(self._finish(model, grace_seconds))
        await asyncio.shield(model.ending)

    async def _finish(self, model: ManagedModel, grace_seconds: float) -> None:
        """Waits for the model's load and calls, ends its process and removes it."""
        if model.task:
            await asyncio.wait({model.task})
        if model.calls:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await model.idle.wait()
        try:
            if model.process:
                await model.process.stop()
        finally:
            model.let_go()
            if self._models.get(model.model_id) is model:
                del self._models[model.model_id]


async def _measure(model: ManagedModel) -> None:
    """Brings the model's memory figures up to date."""
    if model.process is None:
        return
    now = await model.process.memory()
    model.ram_bytes = steady(model.ram_bytes, now.held_bytes)
    model.cache_bytes = steady(model.cache_bytes, now.cache_bytes)
    model.cache_limit_bytes = now.cache_limit_bytes


def _checked(pipeline_type: str, options: Mapping[str, str]) -> tuple[Pipeline, LoadOptions]:
    """The pipeline and its options, if they fit together.

    Raises:
        InvalidArgumentError: they do not, or one of them is not valid.
    """
    pipeline, parsed = find_pipeline(pipeline_type), parse_options(options)
    wanted_engine(pipeline, parsed)
    return pipeline, parsed
