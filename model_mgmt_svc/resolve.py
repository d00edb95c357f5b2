"""Finds the pipeline type of a LoadModel request."""

from __future__ import annotations

from typing import Any

from shared.errors import ModelFileNotFoundError, ModelNotFoundError, UnknownPipelineError
from shared.files.client import ModelFiles
from shared.files.limits import DEFAULT_LIMITS
from shared.files.modules import MODULES, parse_modules
from shared.files.snapshot import CONFIG, SENTENCE_TRANSFORMERS, read_json
from shared.model_ids import ModelId
from shared.pipelines import (
    CLIP,
    FEATURE_EXTRACTION,
    RERANKING,
    Pipeline,
    accepted_names,
    find_pipeline,
    pipeline_of_architecture,
)


async def resolve_pipeline(
    files: ModelFiles, model_id: ModelId, pipeline_type: str, architecture: str
) -> Pipeline:
    """The type that is named; otherwise that of the architecture, then what the files say.

    Files of sentence-transformers say more than config.json, whose architecture may be that of a
    language model in an encoder of texts.

    Args:
        files: fetches modules.json and config.json, only if nothing else gives the type.
        model_id: the model.
        pipeline_type: a name or alias, or empty.
        architecture: a class name as in config.json, or empty; ignored if it is not known.

    Raises:
        UnknownPipelineError: the name is not known, or nothing gives the type; the message lists
            the accepted names.
        ModelNotFoundError: config.json is needed and the provider has none.
        InvalidModelError: it is too large, or no JSON.
        As `ModelFiles.fetch`.
    """
    if pipeline_type.strip():
        return find_pipeline(pipeline_type)
    if pipeline := pipeline_of_architecture(architecture.strip()):
        return pipeline
    if pipeline := await _of_modules(files, model_id):
        return pipeline
    for name in await _architectures(files, model_id):
        if pipeline := pipeline_of_architecture(name):
            return pipeline
    raise UnknownPipelineError(
        f"the config.json of model {model_id!r} does not give its pipeline type; it must be one of "
        f"{accepted_names()}",
        field="pipeline_type",
    )


async def _of_modules(files: ModelFiles, model_id: ModelId) -> Pipeline | None:
    """The type of a model of sentence-transformers; None if it is not one."""
    content = await _content(files, model_id, MODULES)
    if content is None:
        return None
    kinds = [module.kind for module in parse_modules(content)]
    if kinds[:1] == ["CLIPModel"]:
        return CLIP
    own = await _content(files, model_id, SENTENCE_TRANSFORMERS)
    is_scorer = isinstance(own, dict) and own.get("model_type") == "CrossEncoder"
    return RERANKING if is_scorer else FEATURE_EXTRACTION


async def _architectures(files: ModelFiles, model_id: ModelId) -> list[str]:
    config = await _content(files, model_id, CONFIG)
    if config is None:
        raise ModelNotFoundError(f"the file provider has no model {model_id!r}")
    names = config.get("architectures") if isinstance(config, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


async def _content(files: ModelFiles, model_id: ModelId, name: str) -> Any:
    """A JSON file; None if the provider does not have it."""
    try:
        # The next call finds it, if this one has a short deadline.
        path = await files.fetch(model_id, name, DEFAULT_LIMITS.watch(name), goes_on=True)
    except ModelFileNotFoundError:
        return None
    return await read_json(path)
