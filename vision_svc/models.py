"""Models that callers load: each replaces the file that one task runs on."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import (
    CallCancelledError,
    FailedPreconditionError,
    ModelNotLoadedError,
    PipelineMismatchError,
    UnknownOptionError,
    UnknownPipelineError,
)
from shared.files.client import FileProvider
from shared.model_ids import parse_model_id
from vision_svc.tasks import TASKS, VisionTask

if TYPE_CHECKING:
    from vision_svc.engine import Engine

# The one option: the path of the file in the model; else the name that the task's own file has.
FILE_OPTION = "file"


class State(enum.Enum):
    """As `ml.internal.ModelState`."""

    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"


@dataclass(frozen=True)
class LoadedModel:
    """A model and how far it has come.

    Attributes:
        path: its file, None until READY.
        ram_bytes: the size of the file, which instances map into memory.
        loaded_at: Unix seconds, 0 until READY.
    """

    model_id: str
    task: str
    options: Mapping[str, str] = field(default_factory=dict)
    state: State = State.FETCHING
    bytes_fetched: int = 0
    bytes_total: int = 0
    path: Path | None = None
    ram_bytes: int = 0
    loaded_at: int = 0


class Models:
    """What is loaded. For the event loop; files are read and opened in threads."""

    def __init__(self, engine: Engine, provider: FileProvider) -> None:
        self._engine = engine
        self._provider = provider
        self._models: dict[str, LoadedModel] = {}
        self._one_load = asyncio.Lock()

    def list(self) -> list[LoadedModel]:
        return list(self._models.values())

    async def load(
        self, model_id: str, task_name: str, options: Mapping[str, str]
    ) -> AsyncIterator[LoadedModel]:
        """Fetches a file, tries it and puts it in the task's place; yields how far it has come.

        Streams that are open keep the model that they began with.

        Raises:
            UnknownPipelineError, UnknownOptionError: no such task or option.
            PipelineMismatchError: the model is loaded for another task.
            FailedPreconditionError: another model is loaded for this task.
            InvalidModelError: the file is no model of this task.
            ServiceError: as `FileProvider.fetch`.
        """
        task = _task(task_name)
        model_id = parse_model_id(model_id)
        for unknown in options.keys() - {FILE_OPTION}:
            raise UnknownOptionError(
                f"option {unknown[:40]!r} is not known; known is {FILE_OPTION}", field="options"
            )
        async with self._one_load:
            if known := self._loaded(model_id, task):
                yield known
                return
            model = self._models[model_id] = LoadedModel(model_id, task.name, dict(options))
            try:
                async with aclosing(self._load(model, task)) as steps:
                    async for step in steps:
                        self._replace(model, step)
                        model = step
                        yield model
            finally:
                if self._models.get(model_id) is model and model.state is not State.READY:
                    del self._models[model_id]

    async def unload(self, model_id: str) -> None:
        """The task runs on its own file again, from the next stream or picture on.

        A load that is under way ends with CANCELLED.

        Raises:
            ModelNotLoadedError: no such model.
        """
        model_id = parse_model_id(model_id)
        model = self._models.pop(model_id, None)
        if model is None:
            raise ModelNotLoadedError(f"model {model_id} is not loaded")
        if model.state is State.READY:
            self._engine.use_model(TASKS[model.task], None)

    def _loaded(self, model_id: str, task: VisionTask) -> LoadedModel | None:
        model = self._models.get(model_id)
        if model and model.task != task.name:
            raise PipelineMismatchError(f"{model_id} is loaded as {model.task}; unload it first")
        for other in self._models.values():
            if other.task == task.name and other.model_id != model_id:
                raise FailedPreconditionError(
                    f"{task.name} runs on {other.model_id}; unload it first"
                )
        return model

    def _replace(self, model: LoadedModel, step: LoadedModel) -> None:
        """Takes note of a step of a load.

        Raises:
            CallCancelledError: the model was unloaded meanwhile.
        """
        if self._models.get(model.model_id) is not model:
            raise CallCancelledError(f"{model.model_id} was unloaded while it was loading")
        self._models[model.model_id] = step
        if step.state is State.READY:
            self._engine.use_model(TASKS[step.task], step.path)

    async def _load(self, model: LoadedModel, task: VisionTask) -> AsyncGenerator[LoadedModel]:
        file = model.options.get(FILE_OPTION) or task.default_asset.file
        fetched: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        fetch = asyncio.create_task(
            self._provider.fetch(
                model.model_id, file, lambda done, total: fetched.put_nowait((done, total))
            )
        )
        try:
            yield model
            while not fetch.done():
                changed = asyncio.ensure_future(fetched.get())
                await asyncio.wait({fetch, changed}, return_when=asyncio.FIRST_COMPLETED)
                if changed.cancel():
                    continue
                done, total = changed.result()
                model = replace(model, bytes_fetched=done, bytes_total=total)
                yield model
            path = fetch.result()
        finally:
            fetch.cancel()
        model = replace(model, state=State.LOADING)
        yield model
        await self._engine.try_model(task, path)
        yield replace(
            model,
            state=State.READY,
            path=path,
            ram_bytes=path.stat().st_size,
            loaded_at=int(time.time()),
        )


def _task(name: str) -> VisionTask:
    if task := TASKS.get(name):
        return task
    raise UnknownPipelineError(
        f"pipeline type {name[:80]!r} is no vision task; known are {', '.join(TASKS)}",
        field="pipeline_type",
    )
