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
        architecture_suffixes: a model whose config.json names an architecture that ends with one of
            these is of this type. Of several types, the one with the longest such end counts.
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
    aliases=("chat", "code", "chat-completion", "conversational", "code-generation"),
    architecture_suffixes=("ForCausalLM", "LMHeadModel"),
    calls=("GenerateText", "ChatCompletion"),
)
FEATURE_EXTRACTION = Pipeline(
    "feature-extraction",
    "text",
    aliases=("embeddings", "embedding", "sentence-similarity", "text-similarity"),
    architecture_suffixes=(
        *("BertModel", "RobertaModel", "MPNetModel", "XLMRobertaModel", "AlbertModel"),
        *("CamembertModel", "ElectraModel", "DebertaModel", "DebertaV2Model", "LongformerModel"),
        *("T5EncoderModel", "LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"),
        "Gemma3TextModel",
    ),
    calls=("GenerateEmbeddings", "StreamEmbeddings"),
)


def _infer(
    name: str, *aliases: str, architectures: tuple[str, ...] = (), calls: tuple[str, ...] = ()
) -> Pipeline:
    return Pipeline(name, "text", aliases, architectures, ("Infer", *calls))


TEXT2TEXT = _infer(
    *("text2text-generation", "text2text", "seq2seq"),
    architectures=(
        *("T5ForConditionalGeneration", "BartForConditionalGeneration"),
        *("BlenderbotForConditionalGeneration", "BlenderbotSmallForConditionalGeneration"),
        *("LEDForConditionalGeneration", "ProphetNetForConditionalGeneration"),
    ),
    calls=("GenerateText",),
)
TRANSLATION = _infer(
    *("translation", "translate"),
    architectures=(
        *("MarianMTModel", "M2M100ForConditionalGeneration", "FSMTForConditionalGeneration"),
    ),
    calls=("GenerateText",),
)
SUMMARIZATION = _infer(
    *("summarization", "summarisation", "summarize"),
    architectures=("PegasusForConditionalGeneration", "PegasusXForConditionalGeneration"),
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
QUESTION_ANSWERING = _infer(
    *("question-answering", "extractive-question-answering", "qa"),
    architectures=("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
)
FILL_MASK = _infer("fill-mask", "masked-lm", architectures=("ForMaskedLM",))
TOKENIZER = _infer("tokenizer", "tokenize", "tokenization")
FLORENCE2 = _infer(
    *("florence2", "florence-2", "florence"),
    architectures=("Florence2ForConditionalGeneration",),
    calls=("GenerateText",),
)
IMAGE_TO_TEXT = _infer(
    *("image-to-text", "image-captioning"),
    architectures=(
        *("BlipForConditionalGeneration", "Blip2ForConditionalGeneration"),
        *("VisionEncoderDecoderModel", "GitForCausalLM", "Pix2StructForConditionalGeneration"),
    ),
)
VISUAL_LANGUAGE = _infer(
    *("visual-language", "vision-language", "vlm", "image-text-to-text", "audio-text-to-text"),
    "multimodal",
    architectures=(
        *("LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration"),
        *("LlavaOnevisionForConditionalGeneration", "LlavaNextVideoForConditionalGeneration"),
        *("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
        *("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"),
        *("Phi3VForCausalLM", "Phi4MMForCausalLM", "Phi4MultimodalForCausalLM"),
        *("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"),
        *("Idefics2ForConditionalGeneration", "IdeficsForVisionText2Text"),
        *("Gemma3ForConditionalGeneration", "Gemma3nForConditionalGeneration"),
        *("PaliGemmaForConditionalGeneration", "InternVLForConditionalGeneration"),
        *("MllamaForConditionalGeneration", "Mistral3ForConditionalGeneration"),
        *("Llama4ForConditionalGeneration", "Qwen2AudioForConditionalGeneration"),
    ),
    calls=("GenerateText", "ChatCompletion"),
)
JANUS = _infer(
    *("janus", "any-to-any"),
    architectures=("JanusForConditionalGeneration",),
    calls=("GenerateText", "ChatCompletion"),
)
VISUAL_QUESTION_ANSWERING = _infer(
    *("visual-question-answering", "vqa"),
    architectures=("ViltForQuestionAnswering", "BlipForQuestionAnswering"),
)
DOCUMENT_QUESTION_ANSWERING = _infer(
    *("document-question-answering", "docvqa"),
    architectures=(
        *("LayoutLMForQuestionAnswering", "LayoutLMv2ForQuestionAnswering"),
        "LayoutLMv3ForQuestionAnswering",
    ),
)
CLIP = _infer(
    *("clip", "siglip", "zero-shot-image-classification"),
    architectures=("CLIPModel", "SiglipModel", "Siglip2Model"),
)
CLAP = _infer("clap", "zero-shot-audio-classification", architectures=("ClapModel",))
IMAGE_CLASSIFICATION = _infer(
    "image-classification",
    architectures=("ForImageClassification", "ForImageClassificationWithTeacher"),
)
OBJECT_DETECTION = _infer("object-detection", architectures=("ForObjectDetection",))
ZERO_SHOT_OBJECT_DETECTION = _infer(
    "zero-shot-object-detection",
    architectures=(
        *("OwlViTForObjectDetection", "Owlv2ForObjectDetection", "OmDetTurboForObjectDetection"),
        "GroundingDinoForObjectDetection",
    ),
)
IMAGE_SEGMENTATION = _infer(
    *("image-segmentation", "semantic-segmentation", "instance-segmentation"),
    "panoptic-segmentation",
    architectures=(
        *("ForSemanticSegmentation", "ForInstanceSegmentation", "ForUniversalSegmentation"),
        "DetrForSegmentation",
    ),
)
MASK_GENERATION = _infer(
    *("mask-generation", "segment-anything", "sam"),
    architectures=("SamModel", "SamHQModel", "Sam2Model", "Sam2VideoModel", "EdgeTamModel"),
)
DEPTH_ESTIMATION = _infer("depth-estimation", "depth", architectures=("ForDepthEstimation",))
IMAGE_FEATURE_EXTRACTION = _infer(
    *("image-feature-extraction", "image-embedding", "image-embeddings"),
    architectures=(
        *("ViTModel", "DeiTModel", "BeitModel", "SwinModel", "Swinv2Model", "ResNetModel"),
        *("ConvNextModel", "ConvNextV2Model", "Dinov2Model", "Dinov2WithRegistersModel"),
        *("DINOv3ViTModel", "DINOv3ConvNextModel", "IJepaModel", "ViTMAEModel", "ViTMSNModel"),
        *("SiglipVisionModel", "CLIPVisionModel"),
    ),
)
IMAGE_TO_IMAGE = _infer(
    *("image-to-image", "image-super-resolution", "super-resolution"),
    architectures=("ForImageSuperResolution",),
)
VIDEO_CLASSIFICATION = _infer("video-classification", architectures=("ForVideoClassification",))
AUDIO_CLASSIFICATION = _infer(
    "audio-classification",
    architectures=(
        *("ForAudioClassification", "Data2VecAudioForSequenceClassification"),
        *("HubertForSequenceClassification", "SEWForSequenceClassification"),
        *("SEWDForSequenceClassification", "UniSpeechForSequenceClassification"),
        *("UniSpeechSatForSequenceClassification", "Wav2Vec2ForSequenceClassification"),
        *("Wav2Vec2BertForSequenceClassification", "Wav2Vec2ConformerForSequenceClassification"),
        "WavLMForSequenceClassification",
    ),
)
AUDIO_TO_AUDIO = _infer(
    *("audio-to-audio", "speech-to-speech", "voice-conversion"),
    architectures=("ForSpeechToSpeech",),
)
SPEECH_RECOGNITION = _infer(
    *("automatic-speech-recognition", "asr", "speech-to-text", "whisper", "moonshine"),
    architectures=(
        *("WhisperForConditionalGeneration", "MoonshineForConditionalGeneration", "ForCTC"),
        *("MoonshineStreamingForConditionalGeneration", "Speech2TextForConditionalGeneration"),
        *("SpeechEncoderDecoderModel", "SpeechT5ForSpeechToText"),
    ),
    calls=("TranscribeStream",),
)
TEXT_TO_SPEECH = _infer(
    *("text-to-speech", "text-to-audio", "tts"),
    architectures=("VitsModel", "BarkModel", "SpeechT5ForTextToSpeech"),
)
LITERT = _infer("litert", "tflite", "lite-rt")
TEXT_PIPELINES = (
    *(TEXT_GENERATION, FEATURE_EXTRACTION, TEXT2TEXT, TRANSLATION, SUMMARIZATION),
    *(ZERO_SHOT, TEXT_CLASSIFICATION, RERANKING, TOKEN_CLASSIFICATION, QUESTION_ANSWERING),
    *(FILL_MASK, TOKENIZER, FLORENCE2, IMAGE_TO_TEXT, VISUAL_LANGUAGE, JANUS),
    *(VISUAL_QUESTION_ANSWERING, DOCUMENT_QUESTION_ANSWERING, CLIP, CLAP, IMAGE_CLASSIFICATION),
    *(OBJECT_DETECTION, ZERO_SHOT_OBJECT_DETECTION, IMAGE_SEGMENTATION, MASK_GENERATION),
    *(DEPTH_ESTIMATION, IMAGE_FEATURE_EXTRACTION, IMAGE_TO_IMAGE, VIDEO_CLASSIFICATION),
    *(AUDIO_CLASSIFICATION, AUDIO_TO_AUDIO, SPEECH_RECOGNITION, TEXT_TO_SPEECH, LITERT),
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
OBJECT_DETECTION = _vision("object-detector")

# A model loaded as one of these replaces the default model of that task.
VISION_TASKS = (
    *(FACE_DETECTION, FACE_MESH, IRIS_TRACKING, HAND_TRACKING),
    *(POSE_TRACKING, HOLISTIC_TRACKING, SELFIE_SEGMENTATION, HAIR_SEGMENTATION),
    OBJECT_DETECTION,
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
    ends = [
        (len(suffix), pipeline)
        for pipeline in PIPELINES
        for suffix in pipeline.architecture_suffixes
        if architecture.endswith(suffix)
    ]
    return max(ends, key=lambda end: end[0])[1] if ends else None
