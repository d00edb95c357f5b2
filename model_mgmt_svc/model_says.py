"""What a model's own files say of its pipeline type."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from shared.errors import ModelFileNotFoundError
from shared.files.client import ModelFiles
from shared.files.limits import DEFAULT_LIMITS
from shared.files.modules import MODULES, parse_modules
from shared.files.snapshot import CONFIG, SENTENCE_TRANSFORMERS, read_json
from shared.model_ids import ModelId
from shared.pipelines import (
    CLIP,
    FEATURE_EXTRACTION,
    RERANKING,
    TEXT_CLASSIFICATION,
    Pipeline,
    named_pipeline,
    pipeline_of_architecture,
    pipeline_of_id,
    pipeline_of_kind,
)

# Keys that sentence-transformers writes into the config.json of a cross-encoder.
_CROSS_ENCODER = ("sentence_transformers", "sbert_ce_default_activation_function")
# Labels of a model whose config.json does not say it, as in transformers.
_DEFAULT_LABELS = 2


@dataclass(frozen=True)
class Said:
    """A pipeline type that something says, and what says it, as the subject of a sentence."""

    pipeline: Pipeline
    by: str


class ModelSays:
    """Reads what says a model's type, each file when it is needed.

    Args:
        files: fetches config.json and modules.json.
        model_id: the model, or a revision of it.
    """

    def __init__(self, files: ModelFiles, model_id: ModelId) -> None:
        self._files = files
        self._model_id = model_id
        self._contents: dict[str, Any] = {}

    async def is_known(self) -> bool:
        """Whether the provider has one of the files that say a model's type."""
        for name in (CONFIG, MODULES):
            if await self._content(name) is not None:
                return True
        return False

    async def types(self) -> AsyncIterator[Said]:
        """What config.json says, and what modules.json does where it is something else.

        Raises:
            InvalidModelError: one of them is too large, or no JSON.
            As `ModelFiles.fetch`.
        """
        said = await self._of_config()
        if said:
            yield said
        own = await self._of_modules()
        if own and not (said and own.pipeline is said.pipeline):
            yield own

    async def best(self) -> Said | None:
        """What counts where no caller names a type; None if nothing says one.

        Files of sentence-transformers say more than config.json, whose architecture may be that of
        a language model in an encoder of texts. A classifier with one output is a reranker, if its
        id or the key of a cross-encoder says so.

        Raises:
            As `types`.
        """
        if own := await self._of_modules():
            return own
        said = await self._of_config()
        by_id = pipeline_of_id(self._model_id)
        if said and said.pipeline is TEXT_CLASSIFICATION and await self._is_reranker(by_id):
            return Said(RERANKING, f"{said.by} with one output, of a cross-encoder")
        if said or by_id is None:
            return said
        return Said(by_id[0], f"the word {by_id[1]!r} in its id")

    async def _is_reranker(self, by_id: tuple[Pipeline, str] | None) -> bool:
        config = await self._config()
        labels = config.get("id2label")
        count = len(labels) if isinstance(labels, dict) else config.get("num_labels")
        if (_DEFAULT_LABELS if count is None else count) != 1:
            return False
        of_library = any(key in config for key in _CROSS_ENCODER)
        return of_library or (by_id is not None and by_id[0] is RERANKING)

    async def _of_config(self) -> Said | None:
        config = await self._config()
        names = config.get("architectures")
        for name in names if isinstance(names, list) else []:
            if isinstance(name, str) and (pipeline := pipeline_of_architecture(name)):
                return Said(pipeline, f"{name[:80]} in its {CONFIG}")
        kind, tag = config.get("model_type"), config.get("pipeline_tag")
        if isinstance(kind, str) and (of_kind := pipeline_of_kind(kind)):
            return Said(of_kind, f"model_type {kind[:80]} in its {CONFIG}")
        if isinstance(tag, str) and (of_tag := named_pipeline(tag)):
            return Said(of_tag, f"pipeline_tag {tag[:80]} in its {CONFIG}")
        return None

    async def _of_modules(self) -> Said | None:
        content = await self._content(MODULES)
        if content is None:
            return None
        kinds = [module.kind for module in parse_modules(content)]
        if kinds[:1] == ["CLIPModel"]:
            return Said(CLIP, f"its {MODULES}")
        own = await self._content(SENTENCE_TRANSFORMERS)
        is_scorer = isinstance(own, dict) and own.get("model_type") == "CrossEncoder"
        if is_scorer:
            return Said(RERANKING, f"its {SENTENCE_TRANSFORMERS}")
        return Said(FEATURE_EXTRACTION, f"its {MODULES}")

    async def _config(self) -> dict[str, Any]:
        config = await self._content(CONFIG)
        return config if isinstance(config, dict) else {}

    async def _content(self, name: str) -> Any:
        """A JSON file; None if the provider does not have it."""
        if name not in self._contents:
            self._contents[name] = await self._read(name)
        return self._contents[name]

    async def _read(self, name: str) -> Any:
        try:
            # The next call finds it, if this one has a short deadline.
            watched = DEFAULT_LIMITS.watch(name)
            path = await self._files.fetch(self._model_id, name, watched, goes_on=True)
        except ModelFileNotFoundError:
            return None
        return await read_json(path)
