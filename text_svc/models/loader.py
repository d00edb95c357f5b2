"""Loads a model: fetches and converts its files, reserves memory, starts its process."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from shared.errors import (
    InternalError,
    InvalidArgumentError,
    InvalidModelError,
    ResourceExhaustedError,
)
from shared.files.client import ModelFiles
from shared.files.limits import FileLimits
from shared.files.snapshot import single_file, snapshot
from shared.model_host import HOST, ModelState
from shared.pipelines import LITERT, TEXT_GENERATION, Pipeline
from text_svc.models.budget import MIB, MemoryBudget, process_limit
from text_svc.models.conversion import (
    convert,
    plan,
)
from text_svc.models.engine_choice import (
    LITERT_FILES,
    EnginePlan,
    memory_device,
    on_cuda,
    wanted_engine,
)
from text_svc.models.inspection import Inspector
from text_svc.models.model import ManagedModel
from text_svc.options import LoadOptions
from text_svc.processes.fork_server import ForkServer
from text_svc.processes.model_process import ModelProcess
from text_svc.processes.scratch import child_scratch
from text_svc.processes.specs import WorkerSpec
from text_svc.settings import TextSettings

# Memory of a worker besides the weights: interpreter, libraries, activations.
PROCESS_BYTES = 512 * MIB
# The same on a CUDA device: its context, the libraries' kernels and workspaces, activations.
CUDA_PROCESS_BYTES = 1024 * MIB
# A conversion holds the weights three times: for torch, for OpenVINO, and to check the result.
CONVERSION_COPIES = 3


def _float_bytes(options: LoadOptions) -> int:
    """Bytes of a number in memory. "auto" is bfloat16 on CUDA."""
    halves = options.dtype in ("bfloat16", "float16")
    return 2 if halves or (options.dtype == "auto" and on_cuda(options)) else 4


def _packs_a_head(model: ManagedModel, engine: EnginePlan) -> bool:
    """Whether the head gets a packed copy of the weight that it shares, see `packed_linear`."""
    return (
        engine.name == "transformers"
        and model.pipeline is TEXT_GENERATION
        and not on_cuda(model.options)
        and _float_bytes(model.options) == 4
    )


def litert_copies(pipeline: Pipeline, running: int) -> int:
    """Copies of a file's weights that LiteRT holds besides the file: packed for the processor.

    Each interpreter of a .tflite packs its own. Of a .litertlm there is one, and about as much
    again for its keys, values and activations.
    """
    return 2 if pipeline is TEXT_GENERATION else running


def _note_progress(model: ManagedModel, fetched: int, total: int) -> None:
    model.bytes_fetched, model.bytes_total = fetched, total


def _note_share(model: ManagedModel, share: float | None) -> None:
    model.load_share = share


class Loader:
    """Loads models within one memory budget.

    Args:
        models: gives all models that hold a share of the budget.
        forks: forks processes, if there is one.
    """

    def __init__(
        self,
        settings: TextSettings,
        files: ModelFiles,
        models: Callable[[], Iterable[ManagedModel]],
        forks: ForkServer | None = None,
    ) -> None:
        self._settings = settings
        self._files = files
        self._forks = forks
        self._inspector = Inspector(settings, forks)
        self.scratch = Path()
        self.budget = MemoryBudget(settings, models)

    async def load(self, model: ManagedModel) -> None:
        """Loads a model: sets its process, engine and note, and its state along the way.

        Raises:
            ServiceError: why it cannot be loaded.
        """
        wanted = wanted_engine(model.pipeline, model.options)
        model.use = await self._files.use(model.files_id)
        if wanted == "litert":
            await self._load_litert(model)
            return
        with model.part("files"):
            folder = await self._fetch(model)
        with model.part("inspection"):
            sizes = await self._inspector.inspect(
                model.model_id, folder, child_scratch(self.scratch), _float_bytes(model.options)
            )
        engine = EnginePlan(wanted, sizes.total)
        if wanted == "openvino":
            with model.part("conversion"):
                engine = await self._converted(model, folder, sizes.total)
        if _packs_a_head(model, engine):
            engine = replace(engine, weight_bytes=sizes.total + sizes.shared_head)
        cache_bytes = self._reserve(model, engine.weight_bytes)
        model.state, model.engine, model.note = ModelState.LOADING, engine.name, engine.note
        with model.part("process"):
            model.process = await ModelProcess.start(
                self._spec(model, folder, engine, cache_bytes),
                self._settings.load_timeout_seconds,
                partial(_note_share, model),
                # The others import more than is ready.
                self._forks if engine.name == "openvino" else None,
            )

    async def _load_litert(self, model: ManagedModel) -> None:
        """Loads a model that is one file, which LiteRT reads."""
        file = model.options.file
        if file is None:
            suffix = LITERT_FILES[model.pipeline.name]
            raise InvalidArgumentError(
                f"model {model.model_id} needs option file, the name of its {suffix} file",
                field="options[file]",
            )
        folder = await single_file(
            self._files, model.files_id, file, partial(_note_progress, model)
        )
        sizes = await self._inspector.inspect(
            model.model_id, folder, child_scratch(self.scratch), 4, file
        )
        copies = 1 + litert_copies(model.pipeline, self._litert_running(model))
        self.budget.reserve(model, {HOST: copies * sizes.total + PROCESS_BYTES})
        model.state, model.engine = ModelState.LOADING, "litert"
        engine = EnginePlan("litert", sizes.total)
        try:
            model.process = await ModelProcess.start(
                self._spec(model, folder, engine, 0),
                self._settings.load_timeout_seconds,
                partial(_note_share, model),
            )
        except InternalError as error:  # LiteRT has ended it, or does not end
            raise InvalidModelError(
                f"{file} of model {model.model_id} cannot be loaded by LiteRT: {error.message}"
            ) from None

    def _litert_running(self, model: ManagedModel) -> int:
        """Calls that a model of LiteRT answers at once: as many as there are cores for."""
        if model.pipeline is TEXT_GENERATION:
            return 1
        return model.options.max_sequences or max(1, self._threads // (model.options.threads or 1))

    async def _fetch(self, model: ManagedModel) -> Path:
        settings = self._settings
        limits = FileLimits(settings.max_model_json_bytes, settings.max_vocabulary_bytes)
        return await snapshot(
            self._files,
            model.files_id,
            partial(_note_progress, model),
            limits=limits,
            weights=model.options.weights,
        )

    async def _converted(self, model: ManagedModel, folder: Path, weights: int) -> EnginePlan:
        """OpenVINO with the converted folder, or transformers and the reason."""
        planned = await asyncio.to_thread(
            plan, self._settings, model.files_id, model.pipeline, folder, model.options
        )
        manifest = await asyncio.to_thread(planned.manifest)
        if manifest is None:
            model.state = ModelState.CONVERTING
            needed = CONVERSION_COPIES * weights + PROCESS_BYTES
            self.budget.reserve(model, {HOST: needed}, "to be converted")
            with contextlib.suppress(ResourceExhaustedError):  # it may be smaller than this
                await asyncio.to_thread(self._files.space.make_room, weights)
            manifest = await convert(
                planned, self._settings, child_scratch(self.scratch), self._limit(model)
            )
            model.reserved = {}
        if not manifest.refused:
            held = manifest.weight_bytes if planned.weights == "int8" else weights
            return EnginePlan("openvino", held, planned.target)
        why = f"it cannot be converted to OpenVINO: {manifest.refused}"
        if model.options.engine == "openvino" or model.options.dtype == "int8":
            raise InvalidArgumentError(
                f"model {model.model_id} needs engine transformers: {why}", field="options[engine]"
            )
        note = f"transformers runs the model, because {why}"
        return EnginePlan("transformers", weights, note=note)

    def _reserve(self, model: ManagedModel, weights: int) -> int:
        """Reserves the model's share of the budgets before anything is read into memory.

        Returns the bytes of its key-value cache on its device; 0 where it has none.
        """
        device = memory_device(model.options)
        needs = {HOST: weights + PROCESS_BYTES}
        if device != HOST:
            if not self.budget.has(device):  # the model's process says which there are
                self.budget.reserve(model, needs)
                return 0
            needs[device] = weights + CUDA_PROCESS_BYTES
        cache_bytes = 0
        if model.pipeline is TEXT_GENERATION:
            if model.options.cache_size_mb:
                cache_bytes = model.options.cache_size_mb * MIB
            else:
                limit = self._settings.kv_cache_mb * MIB if device == HOST else None
                cache_bytes = self.budget.cache_bytes(needs[device], limit, device)
            needs[device] += cache_bytes
        self.budget.reserve(model, needs)
        return cache_bytes

    @property
    def _threads(self) -> int:
        return self._settings.threads or os.cpu_count() or 1

    def _limit(self, model: ManagedModel) -> int:
        return process_limit(model.reserved_bytes, self._settings.memory_margin_mb, self._threads)

    def _spec(
        self, model: ManagedModel, folder: Path, engine: EnginePlan, cache_bytes: int
    ) -> WorkerSpec:
        settings, options = self._settings, model.options
        known = set(WorkerSpec.model_fields) & set(TextSettings.model_fields)
        cuda = engine.name != "litert" and on_cuda(options)
        threads = min(options.threads or self._threads, self._threads)
        running = options.max_sequences or settings.max_running
        if engine.name == "litert":
            running = self._litert_running(model)
            if model.pipeline is LITERT:
                threads = min(options.threads or 1, self._threads)
        return WorkerSpec(
            cuda=cuda,
            # CUDA maps far more memory than it takes.
            memory_bytes=0 if cuda else self._limit(model),
            scratch=child_scratch(self.scratch),
            model_id=model.model_id,
            folder=folder.resolve(),
            pipeline=model.pipeline.name,
            options=options,
            engine=engine.name,
            converted=engine.converted,
            cache_bytes=cache_bytes,
            threads=threads,
            max_running=running,
            **settings.model_dump(include=known - {"threads", "max_running"}),
        )
