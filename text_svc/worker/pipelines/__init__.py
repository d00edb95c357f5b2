"""What a worker can be: one module a pipeline family, found by the pipeline's canonical name.

Each module has `load(launch) -> LoadedPipeline`. Modules are named as text, so that a worker
imports what its own family needs and no more: torch and transformers alone take seconds.
"""

from __future__ import annotations

from importlib import import_module

from shared import pipelines
from shared.errors import InvalidArgumentError
from text_svc.processes.launch import WorkerSpec
from text_svc.worker.loaded import LoadedPipeline

FAMILIES = {
    pipelines.TEXT_GENERATION.name: "text_generation",
    pipelines.FEATURE_EXTRACTION.name: "feature_extraction",
    pipelines.TEXT2TEXT.name: "sequence_to_sequence",
    pipelines.TRANSLATION.name: "sequence_to_sequence",
    pipelines.SUMMARIZATION.name: "sequence_to_sequence",
    pipelines.ZERO_SHOT.name: "zero_shot_classification",
    pipelines.TEXT_CLASSIFICATION.name: "text_classification",
    pipelines.RERANKING.name: "reranking",
    pipelines.TOKEN_CLASSIFICATION.name: "token_classification",
    pipelines.TOKENIZER.name: "tokenizer",
    pipelines.FLORENCE2.name: "florence2",
    pipelines.IMAGE_TO_TEXT.name: "image_to_text",
    pipelines.VISUAL_LANGUAGE.name: "visual_language",
    pipelines.JANUS.name: "janus",
    pipelines.CLIP.name: "clip",
    pipelines.CLAP.name: "clap",
    pipelines.IMAGE_CLASSIFICATION.name: "image_classification",
    pipelines.SPEECH_RECOGNITION.name: "speech_recognition",
    pipelines.TEXT_TO_SPEECH.name: "text_to_speech",
}


def load(launch: WorkerSpec) -> LoadedPipeline:
    """Loads the model of a launch command with its family's module. Blocks.

    Raises:
        ServiceError: why it cannot be loaded, in a sentence without paths.
    """
    name = FAMILIES.get(launch.pipeline)
    if name is None:
        raise InvalidArgumentError(f"pipeline {launch.pipeline!r} is not served here")
    loaded: LoadedPipeline = import_module(f"{__name__}.{name}").load(launch)
    return loaded
