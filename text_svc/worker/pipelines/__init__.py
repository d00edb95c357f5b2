"""What a worker can serve: one class for each pipeline, found by the pipeline's canonical name.

Classes are named as text, so that a worker imports what its own pipeline needs and no more: torch
and transformers alone take seconds. A class is made of a worker's spec, which loads the model, and
has two methods: `handlers()`, what answers the model's RPCs, and `report()`, the sizes of its
weights. One whose work leaves something in memory has `memory()` besides, its `WorkingMemory`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from shared import pipelines
from shared.errors import InvalidArgumentError
from text_svc.formats.cleaned import cleaned_folder, links_in
from text_svc.formats.load_errors import loading_errors
from text_svc.formats.own_code import code_named
from text_svc.formats.recipe import model_folder
from text_svc.processes.specs import EngineName, WorkerSpec
from text_svc.worker import tokenizing
from text_svc.worker.engines import openvino_stepper
from text_svc.worker.generation import chat_template
from text_svc.worker.loaded import LoadedPipeline
from text_svc.worker.memory import NoCache
from text_svc.worker.trial import calls

CLASSES = {
    pipelines.TEXT_GENERATION.name: "text_generation:TextGeneration",
    pipelines.FEATURE_EXTRACTION.name: "feature_extraction:FeatureExtraction",
    pipelines.TEXT2TEXT.name: "sequence_to_sequence:Seq2Seq",
    pipelines.TRANSLATION.name: "sequence_to_sequence:Seq2Seq",
    pipelines.SUMMARIZATION.name: "sequence_to_sequence:Seq2Seq",
    pipelines.ZERO_SHOT.name: "zero_shot_classification:ZeroShotClassifier",
    pipelines.TEXT_CLASSIFICATION.name: "text_classification:TextClassifier",
    pipelines.RERANKING.name: "reranking:Reranker",
    pipelines.TOKEN_CLASSIFICATION.name: "token_classification:TokenClassifier",
    pipelines.QUESTION_ANSWERING.name: "question_answering:QuestionAnswerer",
    pipelines.FILL_MASK.name: "fill_mask:MaskFiller",
    pipelines.TOKENIZER.name: "tokenizer:Tokenizer",
    pipelines.FLORENCE2.name: "florence2:Florence2",
    pipelines.IMAGE_TO_TEXT.name: "image_to_text:Captioner",
    pipelines.VISUAL_LANGUAGE.name: "visual_language:VisualLanguageModel",
    pipelines.JANUS.name: "janus:Janus",
    pipelines.VISUAL_QUESTION_ANSWERING.name: "visual_question_answering:VisualAnswerer",
    pipelines.DOCUMENT_QUESTION_ANSWERING.name: "document_question_answering:DocumentReader",
    pipelines.CLIP.name: "dual_encoder:Clip",
    pipelines.CLAP.name: "dual_encoder:Clap",
    pipelines.IMAGE_CLASSIFICATION.name: "image_classification:ImageClassifier",
    pipelines.OBJECT_DETECTION.name: "object_detection:ObjectDetector",
    pipelines.ZERO_SHOT_OBJECT_DETECTION.name: "zero_shot_object_detection:ZeroShotObjectDetector",
    pipelines.IMAGE_SEGMENTATION.name: "image_segmentation:Segmenter",
    pipelines.MASK_GENERATION.name: "mask_generation:MaskGenerator",
    pipelines.DEPTH_ESTIMATION.name: "depth_estimation:DepthEstimator",
    pipelines.IMAGE_FEATURE_EXTRACTION.name: "image_feature_extraction:ImageFeatures",
    pipelines.IMAGE_TO_IMAGE.name: "image_to_image:ImageToImage",
    pipelines.VIDEO_CLASSIFICATION.name: "video_classification:VideoClassifier",
    pipelines.AUDIO_CLASSIFICATION.name: "audio_classification:SoundClassifier",
    pipelines.AUDIO_TO_AUDIO.name: "audio_to_audio:SoundCodec",
    pipelines.SPEECH_RECOGNITION.name: "speech_recognition:SpeechRecognizer",
    pipelines.TEXT_TO_SPEECH.name: "text_to_speech:Synthesizer",
    pipelines.LITERT.name: "litert:TensorModel",
}

# These read modules.json and the modules' files themselves.
_READ_MODULES = (pipelines.FEATURE_EXTRACTION.name, pipelines.RERANKING.name)

# The modules of processes that a model's process starts when it loads, by pipeline and engine.
_HELPERS: dict[tuple[str, EngineName], tuple[str, ...]] = {
    (pipelines.TEXT_GENERATION.name, "openvino"): (openvino_stepper.PROCESS, chat_template.PROCESS)
}


def helpers_of(spec: WorkerSpec) -> tuple[str, ...]:
    """The modules of the processes that it starts for its load."""
    return _HELPERS.get((spec.pipeline, spec.engine), ())


def load(spec: WorkerSpec) -> LoadedPipeline:
    """Loads the model of a worker's spec with its pipeline's class. Blocks.

    Raises:
        ServiceError: why it cannot be loaded, in a sentence without paths.
    """
    name = CLASSES.get(spec.pipeline)
    if name is None:
        raise InvalidArgumentError(f"pipeline {spec.pipeline!r} is not served here")
    module, _, class_name = name.partition(":")
    pipeline_class: Any = getattr(import_module(f"{__name__}.{module}"), class_name)
    tokenizing.set_limit(spec.tokenize_seconds)
    with (
        loading_errors(spec.model_id, spec.folder, links_in(spec.scratch)),
        code_named(spec.folder),
        cleaned_folder(spec.folder, spec.scratch, spec.options.weights) as folder,
    ):
        if spec.pipeline not in _READ_MODULES:
            folder = model_folder(folder)
        pipeline = pipeline_class(spec.model_copy(update={"folder": folder}))
        trial = calls(spec.pipeline, pipeline)
        memory = pipeline.memory() if hasattr(pipeline, "memory") else NoCache()
        return LoadedPipeline(pipeline.handlers(), pipeline.report(), trial, memory)
