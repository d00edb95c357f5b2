"""The folder of a whole model, fetched file by file.

The wire has no listing, so known names are requested, and those that other files list. A model of
sentence-transformers may have its transformer in a folder of its own, see `shared.files.modules`.
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
from shared.files.modules import MODULES, STATIC, TRANSFORMER, Module, parse_modules
from shared.model_ids import ModelId, check_file_path

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_SUFFIX = ".safetensors"
WEIGHTS_INDEX_SUFFIX = ".safetensors.index.json"
WEIGHTS_INDEX = f"model{WEIGHTS_INDEX_SUFFIX}"
SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
# What the configuration of a Transformer module may be called; the first that is there counts.
SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
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
    *SENTENCE_CONFIGS,
)
# Files of models that are not in a form that is loaded, and what they then are.
OTHER_FORMS = {
    "adapter_config.json": "it is an adapter (PEFT), to be merged into its base model first",
    "model_index.json": "it is a pipeline of diffusers",
}

MAX_SHARDS = 1000
# An index of the most tensors that are loaded, 100,000, has 10 MB.
MAX_JSON_BYTES = 16 << 20
# Concurrent fetches of small files, which wait for round trips; `FetchLimits.parallel` is that of
# weights, which wait for bandwidth.
MAX_SMALL_FETCHES = 8


async def snapshot(
    files: ModelFiles,
    model_id: ModelId,
    on_progress: Progress | None = None,
    *,
    limits: FileLimits = DEFAULT_LIMITS,
    weights: str = "",
) -> Path:
    """Fetches the files of a model and returns their folder, ready for `from_pretrained`.

    Files in the cache are checked and not fetched again.

    Args:
        files: fetches a single file.
        model_id: the model.
        on_progress: called with the bytes fetched and the total bytes of the files begun so far.
        limits: sizes of the files that are parsed.
        weights: the file of the weights, or their index; empty for the usual names.

    Raises:
        ModelNotFoundError: there is neither config.json nor modules.json.
        ModelFileNotFoundError: there is no file `weights`.
        InvalidModelError: no safetensors weights, a file that lists others is not valid, a file is
            too large, or modules.json begins with neither a transformer nor a table of vectors.
        As `ModelFiles.fetch` for the rest.
    """
    return await _Snapshot(files, model_id, on_progress, limits, weights).make()


async def single_file(
    files: ModelFiles,
    model_id: ModelId,
    name: str,
    on_progress: Progress | None = None,
) -> Path:
    """Fetches the one file that a model is, and returns the folder of the model.

    Args:
        files: fetches it.
        model_id: the model.
        name: of the file, such as "model.tflite".
        on_progress: called with the bytes fetched and the total bytes.

    Raises:
        ModelFileNotFoundError: the provider has no such file.
        As `ModelFiles.fetch` for the rest.
    """
    await files.fetch(model_id, name, on_progress)
    return files.folder(model_id)


class _Snapshot:
    def __init__(
        self,
        files: ModelFiles,
        model_id: ModelId,
        on_progress: Progress | None,
        limits: FileLimits,
        weights: str,
    ) -> None:
        self._limits = limits
        self._weights_file = weights
        self._files = files
        self._model_id = model_id
        self._on_progress = on_progress
        self._progress: dict[str, tuple[int, int]] = {}
        self._small = asyncio.Semaphore(MAX_SMALL_FETCHES)
        self._large = asyncio.Semaphore(files.limits.parallel)

    async def make(self) -> Path:
        own = self._files.folder(self._model_id)

        def is_here() -> bool:
            return any((own / name).exists() for name in (CONFIG, MODULES))

        # Most files of a model that is not here yet are going to be fetched.
        asks_first = await asyncio.to_thread(is_here)
        config = await self._fetch(CONFIG)
        path = await self._fetch(MODULES)
        if path is None and config is None:
            await self._refuse_other_forms("")
            raise ModelNotFoundError(f"the file provider has no model {self._model_id!r}")
        modules = () if path is None else parse_modules(await read_json(path))
        folders = dict.fromkeys(module.folder for module in modules) or {"": None}
        main, *others = folders
        if modules:
            await self._check_first(modules[0], config)
        optional = [_inside(main, name) for name in OPTIONAL_FILES]
        optional += [_inside(folder, name) for folder in others for name in (CONFIG, WEIGHTS)]
        if modules:
            optional.append(SENTENCE_TRANSFORMERS)
        if asks_first:
            absent = await self._files.absent(self._model_id, optional)
            optional = [name for name in optional if name not in absent]
        async with _first_error(), asyncio.TaskGroup() as group:
            named = self._weights_file
            group.create_task(self._named_weights(named) if named else self._weights(main))
            for name in optional:
                group.create_task(self._fetch(name))
        return own

    async def _check_first(self, module: Module, config: Path | None) -> None:
        """Fetches the configuration of the first module; `config` is that of the model's folder."""
        if module.folder:
            config = await self._fetch(_inside(module.folder, CONFIG))
        if config or module.kind == STATIC:
            return
        if module.kind != TRANSFORMER:
            raise InvalidModelError(
                f"{MODULES} of model {self._model_id!r} begins with {module.type[:80]!r}; the "
                f"models that are loaded begin with {TRANSFORMER} or {STATIC}",
                field="model_id",
            )
        await self._refuse_other_forms(module.folder)
        raise InvalidModelError(
            f"model {self._model_id!r} has no {_inside(module.folder, CONFIG)}, where its "
            f"{MODULES} says that the transformer is",
            field="model_id",
        )

    async def _refuse_other_forms(self, folder: str) -> None:
        for name, why in OTHER_FORMS.items():
            if await self._fetch(_inside(folder, name)):
                raise InvalidModelError(
                    f"model {self._model_id!r} has no {_inside(folder, CONFIG)}: {why}",
                    field="model_id",
                )

    async def _weights(self, folder: str) -> None:
        if await self._fetch(_inside(folder, WEIGHTS), large=True):
            return
        index = await self._fetch(_inside(folder, WEIGHTS_INDEX))
        if index is None:
            raise InvalidModelError(
                f"model {self._model_id!r} has neither {_inside(folder, WEIGHTS)} nor "
                f"{_inside(folder, WEIGHTS_INDEX)}: only safetensors weights are loaded",
                field="model_id",
            )
        await self._all_shards(index, folder)

    async def _named_weights(self, name: str) -> None:
        is_index = name.endswith(WEIGHTS_INDEX_SUFFIX)
        path = await self._fetch(name, large=not is_index)
        if path is None:
            raise ModelFileNotFoundError(
                f"the file provider has no file {name[:80]!r} of model {self._model_id!r}",
                field="options[file]",
            )
        if is_index:
            await self._all_shards(path, name.rpartition("/")[0])

    async def _all_shards(self, index: Path, folder: str) -> None:
        """Fetches what an index lists; the names are those in its folder."""
        shards = self._shards(await read_json(index))
        async with asyncio.TaskGroup() as group:
            for shard in shards:
                group.create_task(self._shard(_inside(folder, shard)))

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


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


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
