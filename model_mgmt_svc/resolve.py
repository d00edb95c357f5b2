"""Finds the pipeline type of a LoadModel request, and the model's file where it is one file.

In this order: the architecture hint, the model's own files, the pipeline type that is named, words
in the model's id. Where the files say another type than the caller, they count if a model of theirs
answers all that the caller's type promises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_mgmt_svc.desired import DesiredModel
from model_mgmt_svc.file_names import LITERTLM, TFLITE, find_file, speaks_of_litert, usual_names
from model_mgmt_svc.model_says import ModelSays, Said
from shared.errors import (
    ModelFileNotFoundError,
    ModelNotFoundError,
    PipelineMismatchError,
    ProviderUnavailableError,
    UnknownPipelineError,
)
from shared.file_options import FILE
from shared.files.client import ModelFiles
from shared.model_ids import ModelId
from shared.pipelines import (
    LITERT,
    OBJECT_DETECTION,
    OBJECT_DETECTOR,
    TEXT_GENERATION,
    Pipeline,
    accepted_names,
    find_pipeline,
    pipeline_of_hint,
)

# An architecture that is no hint.
NO_HINT = "generic"
# Names of a file that are told in an error, of all that were tried.
_TOLD_NAMES = 4


@dataclass(frozen=True)
class Asked:
    """What a LoadModel request says of a model's type.

    Attributes:
        pipeline_type: a name or alias, or empty.
        architecture: the hint, or empty.
        file: the option of this name, or empty.
    """

    pipeline_type: str = ""
    architecture: str = ""
    file: str = ""

    def types(self) -> list[Said]:
        """The type of the hint, if it is known, and the one that is named.

        A hint that the named type agrees with is left out: LlamaForCausalLM and feature-extraction
        is an encoder made of a language model.

        Raises:
            UnknownPipelineError: the name is not known; the message lists the accepted names.
        """
        hint, name = self.architecture.strip(), self.pipeline_type.strip()
        by_hint = pipeline_of_hint(hint) if hint and hint.lower() != NO_HINT else None
        hinted = [Said(by_hint, f"the hint {hint[:80]!r}")] if by_hint else []
        if not name:
            return hinted
        named = Said(find_pipeline(name), f"the pipeline type {name[:80]!r}")
        return [each for each in hinted if not named.pipeline.takes(each.pipeline)] + [named]

    def is_just(self, pipeline: Pipeline) -> bool:
        """Whether the caller names this type, by its own name, and nothing else."""
        return not self.architecture.strip() and self.pipeline_type == pipeline.name

    def alias_of(self, pipeline: Pipeline) -> str:
        """The name as the caller wrote it, if it is another name of this type; else empty."""
        name = self.pipeline_type.strip()
        is_alias = name and name != pipeline.name and find_pipeline(name) is pipeline
        return name if is_alias else ""


@dataclass(frozen=True)
class Resolution:
    """The type of a model.

    Attributes:
        why: a sentence for the caller; empty if the model had the type before.
        file: the model's file, where it is one that was found; else empty.
    """

    pipeline: Pipeline
    why: str
    file: str = ""


async def resolve(files: ModelFiles, model_id: ModelId, asked: Asked) -> Resolution:
    """The type of a model, see above.

    Args:
        files: fetches config.json and modules.json, and looks for the model's file.
        model_id: the model, or a revision of it.
        asked: what the caller says.

    Raises:
        UnknownPipelineError: the name is not known, or nothing gives the type; the message lists
            the accepted names.
        PipelineMismatchError: the caller and the files disagree; the message says both.
        ModelNotFoundError: the provider has none of the files that could give the type.
        ModelFileNotFoundError: it has none of the names that the model's one file may have.
        InvalidModelError: a file is too large, or no JSON.
        ProviderUnavailableError: and the caller names no type.
        As `ModelFiles.fetch`.
    """
    wanted = asked.types()
    if wanted and wanted[0].pipeline.service == "vision":
        return _taken(wanted[0])
    if suffix := next((each for each in (LITERTLM, TFLITE) if asked.file.endswith(each)), ""):
        return _decide(model_id, wanted, [_of_file(suffix, asked.file, wanted)], one_file=True)
    try:
        return await _by_files(files, model_id, wanted)
    except ProviderUnavailableError:
        if not wanted:
            raise
        # The service that loads it may have its files, and finds out if it has not.
        return _taken(wanted[0], "; the file provider, which has the model's own, is not reachable")


async def resolve_unasked(files: ModelFiles, model_id: ModelId) -> DesiredModel:
    """A model that nobody has said anything of, by its own files; raises as `resolve`."""
    found = await resolve(files, model_id, Asked())
    return DesiredModel(model_id, found.pipeline.name, {FILE: found.file} if found.file else {})


async def _by_files(files: ModelFiles, model_id: ModelId, wanted: Sequence[Said]) -> Resolution:
    """The type by what the model's own files say, too; see `resolve`."""
    says = ModelSays(files, model_id)
    if found := await _find(files, model_id, wanted, says):
        return found
    if not wanted:
        if best := await says.best():
            return _taken(best)
        if not await says.is_known():
            raise ModelNotFoundError(f"the file provider has no model {model_id!r}")
        raise UnknownPipelineError(
            f"the config.json of model {model_id!r} does not give its pipeline type; it must be "
            f"one of {accepted_names()}",
            field="pipeline_type",
        )
    seen = []
    async for said in says.types():
        seen.append(said)
        if any(each.pipeline.takes(said.pipeline) for each in wanted):
            break  # modules.json need not be read
    return _decide(model_id, wanted, seen)


async def _find(
    files: ModelFiles, model_id: ModelId, wanted: Sequence[Said], says: ModelSays
) -> Resolution | None:
    """The type of a model that is one file for LiteRT, if it is one."""
    asked = wanted[0].pipeline if wanted else None
    if asked is LITERT:
        suffixes = [TFLITE]
    elif asked not in (None, TEXT_GENERATION, OBJECT_DETECTION):
        return None
    elif asked is not OBJECT_DETECTION and speaks_of_litert(model_id):
        suffixes = [LITERTLM] if asked else [LITERTLM, TFLITE]
    elif await says.is_known():
        return None
    elif asked is OBJECT_DETECTION:
        suffixes = [TFLITE]
    else:
        suffixes = [LITERTLM] if asked else [LITERTLM, TFLITE]
    for suffix in suffixes:
        if name := await find_file(files, model_id, suffix):
            of_file = [_of_file(suffix, name, wanted)]
            return replace(_decide(model_id, wanted, of_file, one_file=True), file=name)
    if asked is LITERT:
        names = usual_names(model_id, suffixes[0])
        raise ModelFileNotFoundError(
            f"the file provider has no {suffixes[0]} file of model {model_id!r} with a usual name "
            f"({', '.join(names[:_TOLD_NAMES])} and {len(names) - _TOLD_NAMES} more); say the name "
            "in the option file",
            field="options[file]",
        )
    return None


def _of_file(suffix: str, name: str, wanted: Sequence[Said]) -> Said:
    """The type of a file for LiteRT. Object detection on one is a task of MediaPipe's."""
    pipeline = LITERT if suffix == TFLITE else TEXT_GENERATION
    if suffix == TFLITE and any(each.pipeline is OBJECT_DETECTION for each in wanted):
        pipeline = OBJECT_DETECTOR
    return Said(pipeline, f"its file {name[:80]}")


def _decide(
    model_id: ModelId, wanted: Sequence[Said], says: Sequence[Said], *, one_file: bool = False
) -> Resolution:
    """Chooses between what a caller wants and what the files say.

    Args:
        model_id: for messages.
        wanted: the types that the caller names, the most important one first.
        says: the types that the files say.
        one_file: whether the model is one file for LiteRT, which no other type can load.

    Raises:
        PipelineMismatchError: they disagree.
    """
    if not wanted:
        return _taken(says[0])
    for said in says:
        for each in wanted:
            if each.pipeline is said.pipeline:
                return _taken(each)
    for each in () if one_file else wanted:
        if not says or any(each.pipeline.takes(said.pipeline) for said in says):
            return _taken(each)
    for said in says:
        if _serves(said.pipeline, wanted[-1].pipeline):
            return _taken(said, f" and answers all that {wanted[-1].by} promises")
    names = " and ".join(each.by for each in wanted)
    said = says[0]
    missing = ", ".join(_missing(said.pipeline, wanted[-1].pipeline))
    raise PipelineMismatchError(
        f"model {model_id!r} was asked for by {names}, which is {wanted[0].pipeline.name}, but "
        f"{said.by} says {said.pipeline.name}, which does not answer {missing}; load it as "
        f"{said.pipeline.name}",
    )


def of_loaded(held: Pipeline, asked: Asked) -> Resolution:
    """The type of a LoadModel request for a model that is loaded, or is being loaded.

    Args:
        held: the type that it has; it is taken if it is what the caller asks for, or answers all of
            that. Otherwise the caller's is.
        asked: what the caller says.

    Raises:
        UnknownPipelineError: as `resolve`.
    """
    wanted = asked.types()
    fits = not wanted or any(each.pipeline is held for each in wanted)
    if fits or _serves(held, wanted[-1].pipeline):
        return Resolution(held, "")
    return _taken(wanted[0])


def _serves(pipeline: Pipeline, wanted: Pipeline) -> bool:
    """Whether a type can stand in for the one that is named."""
    on_mediapipe = pipeline is OBJECT_DETECTOR and wanted is OBJECT_DETECTION
    return on_mediapipe or pipeline.serves_as(wanted)


def _missing(pipeline: Pipeline, wanted: Pipeline) -> list[str]:
    """What a type promises that another one does not answer."""
    calls = [call for call in wanted.calls if call not in pipeline.calls]
    inputs = [each for each in wanted.infers if each not in pipeline.infers]
    return calls + ([f"Infer from {inputs[0]}"] if inputs and "Infer" not in calls else [])


def _taken(said: Said, more: str = "") -> Resolution:
    return Resolution(said.pipeline, f"This type is given by {said.by}{more}")
