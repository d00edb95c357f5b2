"""The pipeline types: their names, their services, and how a model's type is recognised.

model_mgmt_svc resolves a LoadModel with this table and the services load by it, so that a name has
the same meaning everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.errors import UnknownPipelineError

ServiceName = Literal["text", "vision"]


@dataclass(frozen=True)
class Pipeline:
    """One pipeline type.

    Attributes:
        name: the canonical name, as HuggingFace writes it.
        service: the service that holds models of this type.
        aliases: other accepted names.
        architecture_suffixes: the type of a model, unless its caller names one, if an architecture
            in its config.json ends with one of these.
        calls: the RPCs of TransformersService that a model of this type answers.
    """

    name: str
    service: ServiceName
    aliases: tuple[str, ...] = ()
    architecture_suffixes: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


TEXT_GENERATION = Pipeline(
    "text-generation",
    "text",
    aliases=("chat", "code", "chat-completion", "conversational"),
    architecture_suffixes=("ForCausalLM", "LMHeadModel"),
    calls=("GenerateText", "ChatCompletion"),
)
FEATURE_EXTRACTION = Pipeline(
    "feature-extraction",
    "text",
    aliases=("embeddings", "embedding", "sentence-similarity"),
    architecture_suffixes=("BertModel", "RobertaModel", "MPNetModel", "XLMRobertaModel"),
    calls=("GenerateEmbeddings", "StreamEmbeddings"),
)


def _infer(
    name: str, *aliases: str, architectures: tuple[str, ...] = (), calls: tuple[str, ...] = ()
) -> Pipeline:
    return Pipeline(name, "text", aliases, architectures, ("Infer", *calls))


TEXT2TEXT = _infer(
    *("text2text-generation", "text2text", "seq2seq"),
    architectures=("T5ForConditionalGeneration", "BartForConditionalGeneration"),
    calls=("GenerateText",),
)
TRANSLATION = _infer(
    *("translation", "translate"),
    architectures=("MarianMTModel", "M2M100ForConditionalGeneration"),
    calls=("GenerateText",),
)
SUMMARIZATION = _infer(
    *("summarization", "summarisation", "summarize"),
    architectures=("PegasusForConditionalGeneration",),
    calls=("GenerateText",),
)
ZERO_SHOT = _infer("zero-shot-classification", "zero-shot", "nli")
TEXT_CLASSIFICATION = _infer(
    *("text-classification", "sentiment-analysis", "sequence-classification"),
    architectures=("ForSequenceClassification",),
)
RERANKING = _infer("reranking", "rerank", "reranker", "cross-encoder", "text-ranking")
TOKEN_CLASSIFICATION = _infer(
    *("token-classification", "ner", "named-entity-recognition"),
    architectures=("ForTokenClassification",),
)
TOKENIZER = _infer("tokenizer", "tokenize", "tokenization")
FLORENCE2 = _infer(
    *("florence2", "florence-2", "florence"),
    architectures=("Florence2ForConditionalGeneration",),
    calls=("GenerateText",),
)
IMAGE_TO_TEXT = _infer(
    *("image-to-text", "image-captioning"),
    architectures=("BlipForConditionalGeneration", "VisionEncoderDecoderModel"),
)
VISUAL_LANGUAGE = _infer(
    *("visual-language", "vision-language", "vlm", "image-text-to-text", "audio-text-to-text"),
    architectures=(
        *("LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration"),
        *("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
        *("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"),
        *("Gemma3ForConditionalGeneration", "Qwen2AudioForConditionalGeneration"),
    ),
    calls=("GenerateText", "ChatCompletion"),
)
JANUS = _infer(
    *("janus", "any-to-any"),
    architectures=("JanusForConditionalGeneration",),
    calls=("GenerateText", "ChatCompletion"),
)
CLIP = _infer(
    *("clip", "siglip", "zero-shot-image-classification"),
    architectures=("CLIPModel", "SiglipModel"),
)
CLAP = _infer("clap", "zero-shot-audio-classification", architectures=("ClapModel",))
IMAGE_CLASSIFICATION = _infer("image-classification", architectures=("ForImageClassification",))
SPEECH_RECOGNITION = _infer(
    *("automatic-speech-recognition", "asr", "speech-to-text", "whisper", "moonshine"),
    architectures=(
        *("WhisperForConditionalGeneration", "MoonshineForConditionalGeneration", "ForCTC"),
    ),
    calls=("TranscribeStream",),
)
TEXT_TO_SPEECH = _infer(
    *("text-to-speech", "text-to-audio", "tts"),
    architectures=("VitsModel",),
)
TEXT_PIPELINES = (
    *(TEXT_GENERATION, FEATURE_EXTRACTION, TEXT2TEXT, TRANSLATION, SUMMARIZATION),
    *(ZERO_SHOT, TEXT_CLASSIFICATION, RERANKING, TOKEN_CLASSIFICATION, TOKENIZER),
    *(FLORENCE2, IMAGE_TO_TEXT, VISUAL_LANGUAGE, JANUS, CLIP, CLAP, IMAGE_CLASSIFICATION),
    *(SPEECH_RECOGNITION, TEXT_TO_SPEECH),
)


def _vision(name: str, *aliases: str) -> Pipeline:
    return Pipeline(name, "vision", aliases)


FACE_DETECTION = _vision("face-detection", "face-detector")
FACE_MESH = _vision("face-mesh", "face-landmarker", "face-landmarks")
IRIS_TRACKING = _vision("iris-tracking", "iris")
HAND_TRACKING = _vision("hand-tracking", "gesture-recognizer", "hand-landmarker")
POSE_TRACKING = _vision("pose-tracking", "pose-landmarker", "pose-estimation")
HOLISTIC_TRACKING = _vision("holistic-tracking", "holistic-landmarker", "holistic")
SELFIE_SEGMENTATION = _vision("selfie-segmentation", "selfie-segmenter")
HAIR_SEGMENTATION = _vision("hair-segmentation", "hair-segmenter")

# A model loaded as one of these replaces the default model of that task.
VISION_TASKS = (
    *(FACE_DETECTION, FACE_MESH, IRIS_TRACKING, HAND_TRACKING),
    *(POSE_TRACKING, HOLISTIC_TRACKING, SELFIE_SEGMENTATION, HAIR_SEGMENTATION),
)

PIPELINES: tuple[Pipeline, ...] = (*TEXT_PIPELINES, *VISION_TASKS)

_BY_NAME = {name: p for p in PIPELINES for name in (p.name, *p.aliases)}


def accepted_names() -> str:
    """All accepted pipeline types, for messages."""
    return ", ".join(sorted(_BY_NAME))


def find_pipeline(name: str) -> Pipeline:
    """The pipeline type of a name or alias, ignoring case; "_" and " " count as "-".

    Raises:
        UnknownPipelineError: no such type; the message lists the accepted names.
    """
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    if pipeline := _BY_NAME.get(key):
        return pipeline
    raise UnknownPipelineError(
        f"pipeline type {name[:80]!r} is unknown; it must be one of {accepted_names()}",
        field="pipeline_type",
    )


def pipeline_of_architecture(architecture: str) -> Pipeline | None:
    """The pipeline type of an architecture, a class name such as LlamaForCausalLM."""
    for pipeline in PIPELINES:
        if pipeline.architecture_suffixes and architecture.endswith(pipeline.architecture_suffixes):
            return pipeline
    return None
