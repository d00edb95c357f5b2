"""The models that callers load; each replaces the model file of one task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import (
    FailedPreconditionError,
    ModelNotLoadedError,
    PipelineMismatchError,
    UnknownOptionError,
    UnknownPipelineError,
)
from shared.file_options import FILE, REVISION, FileOptions
from shared.files.client import ModelFiles
from shared.model_host import HostedModel, LoadProgress, MemoryPool, ModelState, follow_load
from shared.model_ids import ModelId
from shared.pipelines import find_pipeline
from vision_svc.detector import VisionTask
from vision_svc.tasks import TASKS

if TYPE_CHECKING:
    from vision_svc.runtime import VisionRuntime


@dataclass(kw_only=True, eq=False)
class TaskModel(HostedModel):
    """A model that a task runs on, or will.

    All models share a process, so `ram_bytes` is no measurement of it: it is what each instance of
    the task was measured to take, or the file's size while there is none.
    """

    task: VisionTask
    path: Path | None = None
    load: asyncio.Task[None] | None = None


class Models:
    """The loaded models. For the event loop; files are read and opened in threads."""

    def __init__(self, runtime: VisionRuntime, files: ModelFiles) -> None:
        self._runtime = runtime
        self._files = files
        self._models: dict[ModelId, TaskModel] = {}
        self._one_load = asyncio.Lock()

    async def measure(self) -> None:
        """Brings the memory figures up to date: instances come and go."""
        for model in self._models.values():
            if model.path and model.state is ModelState.READY:
                taken = self._runtime.instances.memory_mb_of(model.path) << 20
                model.ram_bytes = max(model.weights_bytes, taken)

    def models(self) -> list[TaskModel]:
        return list(self._models.values())

    async def load(
        self, model_id: ModelId, pipeline_type: str, options: Mapping[str, str]
    ) -> AsyncIterator[LoadProgress]:
        """Fetches a file, tries it and makes the task use it; reports the progress.

        Open streams keep the model that they began with.

        Raises:
            UnknownPipelineError, UnknownOptionError: there is no such task or option.
            PipelineMismatchError: the model is loaded for another task.
            FailedPreconditionError: another model is loaded for this task.
            InvalidModelError: the file is not a model of this task.
            CallCancelledError: the model was unloaded while it was loading.
            ServiceError: as `ModelFiles.fetch`.
        """
        task = _task(pipeline_type)
        chosen = _options(options)
        async with self._one_load:
            model = self._loaded(model_id, task)
            if model is None:
                pipeline = find_pipeline(task.name)
                model = TaskModel(model_id, pipeline, dict(options), task=task)
                model.load = asyncio.create_task(self._load(model, chosen))
                self._models[model_id] = model
            assert model.load is not None, "a model in the table has its load"
            try:
                async for progress in follow_load(model, model.load):
                    yield progress
            finally:
                if model.state is not ModelState.READY:
                    model.load.cancel()
                    model.let_go()
                    if self._models.get(model_id) is model:
                        del self._models[model_id]

    def check(self, pipeline_type: str, options: Mapping[str, str]) -> Mapping[str, str]:
        """All options that a load would have.

        Raises:
            UnknownPipelineError, UnknownOptionError: there is no such task or option.
            InvalidPathError: the file is not inside the model's folder.
            InvalidArgumentError: the revision is not valid.
        """
        task, chosen = _task(pipeline_type), _options(options)
        revision = {REVISION: chosen.revision} if chosen.revision else {}
        return {FILE: _file(task, chosen), **revision}

    async def unload(
        self, model_id: ModelId, *, if_idle: bool = False, idle_within: float = 0
    ) -> bool:
        """Makes the task use its own file again, from the next stream or picture on.

        A load that is running ends with CANCELLED.

        Args:
            if_idle: only if it is READY and answers no calls and streams.
            idle_within: does nothing here: calls name no model, and could not wait for it.

        Returns:
            Whether it was unloaded.

        Raises:
            ModelNotLoadedError: there is no such model.
        """
        model = self._models.get(model_id)
        if model is None:
            raise ModelNotLoadedError(f"model {model_id} is not loaded")
        if if_idle and (model.calls or model.state is not ModelState.READY):
            return False
        del self._models[model_id]
        if model.state is ModelState.READY:
            self._runtime.use_model(model.task, None)
            model.let_go()
        elif model.load:
            model.load.cancel()
        return True

    def memory(self) -> Iterable[MemoryPool]:
        """None is counted: models are small files, and instances map them."""
        return ()

    def waiting_calls(self) -> Mapping[ModelId, int]:
        """None wait: calls name no model."""
        return {}

    def _loaded(self, model_id: ModelId, task: VisionTask) -> TaskModel | None:
        model = self._models.get(model_id)
        if model and model.task is not task:
            raise PipelineMismatchError(
                f"{model_id} is loaded as {model.task.name}; unload it first"
            )
        for other in self._models.values():
            if other.task is task and other.model_id != model_id:
                raise FailedPreconditionError(
                    f"{task.name} runs on {other.model_id}; unload it first"
                )
        return model

    async def _load(self, model: TaskModel, options: FileOptions) -> None:
        def progress(fetched: int, total: int) -> None:
            model.bytes_fetched, model.bytes_total = fetched, total

        source = options.files_of(model.model_id)
        model.use = await self._files.use(source)
        path = await self._files.fetch(source, _file(model.task, options), progress)
        model.state = ModelState.LOADING
        await self._runtime.try_model(model.task, path)
        model.path, model.weights_bytes = path, path.stat().st_size
        model.ram_bytes = model.weights_bytes
        self._runtime.use_model(model.task, path, model)
        model.loaded_at = int(time.time())
        model.state = ModelState.READY


def _options(options: Mapping[str, str]) -> FileOptions:
    known = (FILE, REVISION)
    for unknown in options.keys() - set(known):
        raise UnknownOptionError(
            f"option {unknown[:40]!r} is not known; it must be one of {', '.join(known)}",
            field="options",
        )
    return FileOptions.of(options)


def _file(task: VisionTask, options: FileOptions) -> str:
    """The path of the task's file in a model."""
    return options.file or task.default_asset.file


def _task(name: str) -> VisionTask:
    if task := TASKS.get(name):
        return task
    raise UnknownPipelineError(
        f"pipeline type {name[:80]!r} is not a vision task; it must be one of {', '.join(TASKS)}",
        field="pipeline_type",
    )
