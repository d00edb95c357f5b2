"""Finds the pipeline type of a LoadModel request."""

from __future__ import annotations

from shared.errors import ModelFileNotFoundError, ModelNotFoundError, UnknownPipelineError
from shared.files.client import ModelFiles
from shared.files.limits import DEFAULT_LIMITS
from shared.files.snapshot import CONFIG, read_json
from shared.model_ids import ModelId
from shared.pipelines import Pipeline, accepted_names, find_pipeline, pipeline_of_architecture


async def resolve_pipeline(
    files: ModelFiles, model_id: ModelId, pipeline_type: str, architecture: str
) -> Pipeline:
    """The type that is named; otherwise that of the architecture, then that of config.json.

    Args:
        files: fetches config.json, only if nothing else gives the type.
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
    for name in await _architectures(files, model_id):
        if pipeline := pipeline_of_architecture(name):
            return pipeline
    raise UnknownPipelineError(
        f"the config.json of model {model_id!r} does not give its pipeline type; it must be one of "
        f"{accepted_names()}",
        field="pipeline_type",
    )


async def _architectures(files: ModelFiles, model_id: ModelId) -> list[str]:
    try:
        # The next call finds it, if this one has a short deadline.
        path = await files.fetch(model_id, CONFIG, DEFAULT_LIMITS.watch(CONFIG), goes_on=True)
        config = await read_json(path)
    except ModelFileNotFoundError:
        raise ModelNotFoundError(f"the file provider has no model {model_id!r}") from None
    names = config.get("architectures") if isinstance(config, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
