"""The folder of a whole model, fetched file by file.

The wire has no listing, so known names are requested, and those that other files list.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from shared.errors import (
    InvalidModelError,
    InvalidPathError,
    MissingFieldError,
    ModelFileNotFoundError,
    ModelNotFoundError,
)
from shared.files import disk
from shared.files.client import ModelFiles, Progress
from shared.files.disk import disk_errors
from shared.files.limits import DEFAULT_LIMITS, FileLimits
from shared.model_ids import ModelId, check_file_path

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
MODULES = "modules.json"
# What a model may have besides its configuration and weights.
OPTIONAL_FILES = (
    "generation_config.json",
    # Tokenizers: configurations, then all vocabularies that transformers' classes read.
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
    *("tokenizer.model", "spiece.model", "spm.model", "spm_char.model", "sentencepiece.model"),
    *("sentencepiece.bpe.model", "tekken.json", "tiktoken.model", "prophetnet.tokenizer"),
    *("vocab.json", "merges.txt", "vocab.txt", "bpe.codes", "dict.txt", "byte_maps.json"),
    *("source.spm", "target.spm", "target_vocab.json", "vocab-src.json", "vocab-tgt.json"),
    *("entity_vocab.json", "emoji.json", "word_shape.json", "word_pronunciation.json"),
    *("preprocessor_config.json", "processor_config.json", "normalizer.json"),
    # sentence-transformers; the folders of its modules are read from modules.json.
    *(MODULES, "sentence_bert_config.json", "config_sentence_transformers.json"),
    "1_Pooling/config.json",
)

MAX_SHARDS = 1000
MAX_MODULES = 32
# An index of the most tensors that are loaded, 100,000, has 10 MB.
MAX_JSON_BYTES = 16 << 20
# Concurrent fetches: small files wait for round trips, large ones for bandwidth.
MAX_SMALL_FETCHES = 8
MAX_LARGE_FETCHES = 2


async def snapshot(
    files: ModelFiles,
    model_id: ModelId,
    on_progress: Progress | None = None,
    *,
    limits: FileLimits = DEFAULT_LIMITS,
) -> Path:
    """Fetches the files of a model and returns their folder, ready for `from_pretrained`.

    Files in the cache are checked and not fetched again.

    Args:
        files: fetches a single file.
        model_id: the model.
        on_progress: called with the bytes fetched and the total bytes of the files begun so far.
        limits: sizes of the files that are parsed.

    Raises:
        ModelNotFoundError: there is no config.json.
        InvalidModelError: no safetensors weights, a file that lists others is not valid, or a
            file is too large.
        As `ModelFiles.fetch` for the rest.
    """
    return await _Snapshot(files, model_id, on_progress, limits).make()


class _Snapshot:
    def __init__(
        self,
        files: ModelFiles,
        model_id: ModelId,
        on_progress: Progress | None,
        limits: FileLimits,
    ) -> None:
        self._limits = limits
        self._files = files
        self._model_id = model_id
        self._on_progress = on_progress
        self._progress: dict[str, tuple[int, int]] = {}
        self._small = asyncio.Semaphore(MAX_SMALL_FETCHES)
        self._large = asyncio.Semaphore(MAX_LARGE_FETCHES)

    async def make(self) -> Path:
        if await self._fetch(CONFIG) is None:
            raise ModelNotFoundError(f"the file provider has no model {self._model_id!r}")
        async with _first_error(), asyncio.TaskGroup() as group:
            group.create_task(self._weights())
            for name in OPTIONAL_FILES:
                if name != MODULES:
                    group.create_task(self._fetch(name))
            group.create_task(self._modules())
        return self._files.folder(self._model_id)

    async def _weights(self) -> None:
        if await self._fetch(WEIGHTS, large=True):
            return
        index = await self._fetch(WEIGHTS_INDEX)
        if index is None:
            raise InvalidModelError(
                f"model {self._model_id!r} has neither {WEIGHTS} nor {WEIGHTS_INDEX}: "
                "only safetensors weights are loaded",
                field="model_id",
            )
        shards = self._shards(await read_json(index))
        async with asyncio.TaskGroup() as group:
            for shard in shards:
                group.create_task(self._shard(shard))

    def _shards(self, index: Any) -> list[str]:
        """The checked names of the shards that an index lists."""
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict) or not names:
            raise self._broken(WEIGHTS_INDEX, "it has no weight_map")
        shards = sorted({str(name) for name in names.values()})
        if len(shards) > MAX_SHARDS:
            raise self._broken(
                WEIGHTS_INDEX, f"it lists {len(shards)} of at most {MAX_SHARDS} files"
            )
        self._check_names(WEIGHTS_INDEX, shards)
        if not all(name.endswith(".safetensors") for name in shards):
            raise self._broken(WEIGHTS_INDEX, "it lists files that are not safetensors")
        return shards

    async def _shard(self, name: str) -> None:
        if await self._fetch(name, large=True) is None:
            raise self._broken(
                WEIGHTS_INDEX, f"it lists {name[:80]!r}, which the file provider does not have"
            )

    async def _modules(self) -> None:
        """Files of those sentence-transformers modules that have a folder."""
        path = await self._fetch(MODULES)
        if path is None:
            return
        modules = await read_json(path)
        try:
            folders = sorted({str(module["path"]) for module in modules} - {""})
        except (TypeError, KeyError):
            raise self._broken(MODULES, "it is not a list of modules with paths") from None
        if len(folders) > MAX_MODULES:
            raise self._broken(MODULES, f"it lists {len(folders)} of at most {MAX_MODULES} modules")
        names = [f"{folder}/{name}" for folder in folders for name in (CONFIG, WEIGHTS)]
        self._check_names(MODULES, names)
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(self._fetch(name))

    async def _fetch(self, name: str, large: bool = False) -> Path | None:
        """Fetches one file; None if the provider does not have it."""

        def on_progress(fetched: int, total: int) -> None:
            self._progress[name] = fetched, total
            if self._on_progress:
                self._on_progress(*map(sum, zip(*self._progress.values(), strict=True)))

        async with self._large if large else self._small:
            try:
                watched = self._limits.watch(name, on_progress)
                return await self._files.fetch(self._model_id, name, watched)
            except ModelFileNotFoundError:
                return None

    def _check_names(self, source: str, names: Iterable[str]) -> None:
        try:
            for name in names:
                check_file_path(name)
        except (InvalidPathError, MissingFieldError) as error:
            raise self._broken(source, error.message) from None

    def _broken(self, name: str, why: str) -> InvalidModelError:
        return InvalidModelError(f"{name} of model {self._model_id!r} is not valid: {why}")


@asynccontextmanager
async def _first_error() -> AsyncIterator[None]:
    """Raises the first error of a task group alone; it is why the other tasks were cancelled."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def read_json(path: Path) -> Any:
    """The content of a JSON file of a model.

    Raises:
        InvalidModelError: it is not valid JSON, or has more than MAX_JSON_BYTES.
    """

    def read() -> Any:
        with disk_errors():
            return disk.read_json(path, max_bytes=MAX_JSON_BYTES)

    return await asyncio.to_thread(read)
