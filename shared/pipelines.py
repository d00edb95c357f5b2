"""The pipeline types: their names, their services, and how a model's type is recognised.

model_mgmt_svc resolves a LoadModel with this table and the services load by it, so that a name has
the same meaning everywhere.
"""

from __future__ import annotations

import re
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
        kinds: kinds of models of this type: what callers send as a hint, and what config.json has
            as its model_type. Case, and all but letters and digits, do not count.
        infers: what `Infer` makes of what.
        loads: names of other types whose models this one loads too, if it is named.
        ids: words in the id of a model that is of this type, where nothing else says it.
    """

    name: str
    service: ServiceName
    aliases: tuple[str, ...] = ()
    architecture_suffixes: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    infers: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    def serves_as(self, other: Pipeline) -> bool:
        """Whether a model of this type answers all that `other` promises."""
        promised = {*other.calls, *other.infers}
        return self.service == other.service and promised <= {*self.calls, *self.infers}

    def takes(self, other: Pipeline) -> bool:
        """Whether a model of type `other` can be loaded as this one."""
        return self is other or other.name in self.loads or ANY in self.loads


# In `loads`: the models of all types.
ANY = "*"


TEXT_GENERATION = Pipeline(
    "text-generation",
    "text",
    aliases=("chat", "code", "chat-completion", "conversational", "code-generation"),
    architecture_suffixes=("ForCausalLM", "LMHeadModel"),
    calls=("GenerateText", "ChatCompletion", "TokenCount"),
    kinds=(
        *("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi"),
        *("phi3", "gpt2", "gpt_neox", "opt", "bloom", "falcon"),
    ),
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
    loads=(
        *("text-generation", "text2text-generation", "translation", "summarization"),
        *("text-classification", "token-classification", "question-answering", "fill-mask"),
    ),
    ids=("sentence-transformers",),
)


def _infer(
    name: str,
    *aliases: str,
    architectures: tuple[str, ...] = (),
    calls: tuple[str, ...] = (),
    kinds: tuple[str, ...] = (),
    infers: tuple[str, ...],
    loads: tuple[str, ...] = (),
    ids: tuple[str, ...] = (),
) -> Pipeline:
    return Pipeline(
        name, "text", aliases, architectures, ("Infer", *calls), kinds, infers, loads, ids
    )


TEXT2TEXT = _infer(
    *("text2text-generation", "text2text", "seq2seq"),
    architectures=(
        *("T5ForConditionalGeneration", "BartForConditionalGeneration"),
        *("BlenderbotForConditionalGeneration", "BlenderbotSmallForConditionalGeneration"),
        *("LEDForConditionalGeneration", "ProphetNetForConditionalGeneration"),
    ),
    calls=("GenerateText",),
    kinds=("t5", "mt5", "bart", "mbart"),
    infers=("text to text",),
    loads=("translation", "summarization"),
)
TRANSLATION = _infer(
    *("translation", "translate"),
    architectures=(
        *("MarianMTModel", "M2M100ForConditionalGeneration", "FSMTForConditionalGeneration"),
    ),
    calls=("GenerateText",),
    kinds=("marian", "m2m_100", "fsmt"),
    infers=("text to text",),
    loads=("text2text-generation", "summarization"),
)
SUMMARIZATION = _infer(
    *("summarization", "summarisation", "summarize"),
    architectures=("PegasusForConditionalGeneration", "PegasusXForConditionalGeneration"),
    calls=("GenerateText",),
    kinds=("pegasus", "pegasus_x"),
    infers=("text to text",),
    loads=("text2text-generation", "translation"),
)
ZERO_SHOT = _infer(
    "zero-shot-classification",
    "zero-shot",
    "nli",
    infers=("text and labels to labels",),
    loads=("text-classification",),
)
TEXT_CLASSIFICATION = _infer(
    *("text-classification", "sentiment-analysis", "sequence-classification"),
    architectures=("ForSequenceClassification",),
    infers=("text to labels",),
    loads=("reranking",),
)
RERANKING = _infer(
    "reranking",
    "rerank",
    "reranker",
    "cross-encoder",
    "text-ranking",
    infers=("query and documents to documents",),
    loads=("text-classification",),
    ids=("rerank", "reranker", "cross-encoder"),
)
TOKEN_CLASSIFICATION = _infer(
    *("token-classification", "ner", "named-entity-recognition"),
    architectures=("ForTokenClassification",),
    infers=("text to spans",),
)
QUESTION_ANSWERING = _infer(
    *("question-answering", "extractive-question-answering", "qa"),
    architectures=("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
    infers=("text and prompt to answers",),
)
FILL_MASK = _infer(
    "fill-mask",
    "masked-lm",
    architectures=("ForMaskedLM",),
    infers=("text to masks",),
)
TOKENIZER = _infer(
    "tokenizer",
    "tokenize",
    "tokenization",
    infers=("text to tokens", "tokens to text"),
    loads=(ANY,),
)
FLORENCE2 = _infer(
    *("florence2", "florence-2", "florence"),
    architectures=("Florence2ForConditionalGeneration",),
    calls=("GenerateText",),
    kinds=("florence2", "florence"),
    infers=("image to text", "image and prompt to text", "image and prompt to regions"),
    ids=("florence", "florence-2", "florence2"),
)
IMAGE_TO_TEXT = _infer(
    *("image-to-text", "image-captioning"),
    architectures=(
        *("BlipForConditionalGeneration", "Blip2ForConditionalGeneration"),
        *("VisionEncoderDecoderModel", "GitForCausalLM", "Pix2StructForConditionalGeneration"),
    ),
    kinds=("blip", "blip-2", "git", "pix2struct", "vision-encoder-decoder", "trocr", "donut"),
    infers=("image to text",),
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
    calls=("GenerateText", "ChatCompletion", "TokenCount"),
    kinds=(
        *("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        *("phi3vision", "phi3_v", "phi4_multimodal", "smolvlm", "idefics2", "idefics3", "gemma3"),
        *("gemma3n", "paligemma", "internvl", "mllama", "mistral3", "pixtral", "qwen2_audio"),
    ),
    infers=("image to text", "image and prompt to text", "audio and prompt to text"),
    loads=("image-to-text",),
    ids=("llava", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "phi-3-vision", "phi-3.5-vision"),
)
JANUS = _infer(
    *("janus", "any-to-any"),
    architectures=("JanusForConditionalGeneration",),
    calls=("GenerateText", "ChatCompletion", "TokenCount"),
    kinds=("janus",),
    infers=("image to text", "image and prompt to text", "text to image"),
    ids=("janus",),
)
VISUAL_QUESTION_ANSWERING = _infer(
    *("visual-question-answering", "vqa"),
    architectures=("ViltForQuestionAnswering", "BlipForQuestionAnswering"),
    kinds=("vilt",),
    infers=("image and prompt to text",),
    loads=("image-to-text",),
)
DOCUMENT_QUESTION_ANSWERING = _infer(
    *("document-question-answering", "docvqa"),
    architectures=(
        *("LayoutLMForQuestionAnswering", "LayoutLMv2ForQuestionAnswering"),
        "LayoutLMv3ForQuestionAnswering",
    ),
    kinds=("layoutlm", "layoutlmv2", "layoutlmv3"),
    infers=("document and prompt to answers",),
    loads=("image-to-text",),
)
CLIP = _infer(
    *("clip", "siglip", "zero-shot-image-classification"),
    architectures=("CLIPModel", "SiglipModel", "Siglip2Model"),
    kinds=("clip", "siglip", "siglip2"),
    infers=("image to vector", "text to vector", "image and labels to labels"),
    ids=("clip", "siglip", "siglip2"),
)
CLAP = _infer(
    "clap",
    "zero-shot-audio-classification",
    architectures=("ClapModel",),
    kinds=("clap",),
    infers=("audio to vector", "text to vector", "audio and labels to labels"),
    ids=("clap",),
)
IMAGE_CLASSIFICATION = _infer(
    "image-classification",
    architectures=("ForImageClassification", "ForImageClassificationWithTeacher"),
    infers=("image to labels",),
)
OBJECT_DETECTION = _infer(
    "object-detection",
    architectures=("ForObjectDetection",),
    kinds=("yolos", "rt_detr", "rt_detr_v2", "d_fine", "conditional_detr", "deformable_detr"),
    infers=("image to boxes",),
)
ZERO_SHOT_OBJECT_DETECTION = _infer(
    "zero-shot-object-detection",
    architectures=(
        *("OwlViTForObjectDetection", "Owlv2ForObjectDetection", "OmDetTurboForObjectDetection"),
        "GroundingDinoForObjectDetection",
    ),
    kinds=("owlvit", "owlv2", "grounding-dino", "mm-grounding-dino", "omdet-turbo"),
    infers=("image and labels to boxes",),
    ids=("owlvit", "owlv2", "grounding-dino"),
)
IMAGE_SEGMENTATION = _infer(
    *("image-segmentation", "semantic-segmentation", "instance-segmentation"),
    "panoptic-segmentation",
    architectures=(
        *("ForSemanticSegmentation", "ForInstanceSegmentation", "ForUniversalSegmentation"),
        "DetrForSegmentation",
    ),
    kinds=("segformer", "mask2former", "maskformer", "oneformer", "upernet"),
    infers=("image to masks",),
)
MASK_GENERATION = _infer(
    *("mask-generation", "segment-anything", "sam"),
    architectures=("SamModel", "SamHQModel", "Sam2Model", "Sam2VideoModel", "EdgeTamModel"),
    kinds=("sam", "sam2", "sam2_video", "sam_hq", "edgetam"),
    infers=("image and prompts to masks",),
)
DEPTH_ESTIMATION = _infer(
    "depth-estimation",
    "depth",
    architectures=("ForDepthEstimation",),
    kinds=("depth_anything", "depth_pro", "zoedepth", "glpn"),
    infers=("image to depth",),
)
IMAGE_FEATURE_EXTRACTION = _infer(
    *("image-feature-extraction", "image-embedding", "image-embeddings"),
    architectures=(
        *("ViTModel", "DeiTModel", "BeitModel", "SwinModel", "Swinv2Model", "ResNetModel"),
        *("ConvNextModel", "ConvNextV2Model", "Dinov2Model", "Dinov2WithRegistersModel"),
        *("DINOv3ViTModel", "DINOv3ConvNextModel", "IJepaModel", "ViTMAEModel", "ViTMSNModel"),
        *("SiglipVisionModel", "CLIPVisionModel"),
    ),
    kinds=("dinov2", "dinov2_with_registers", "dinov3_vit"),
    infers=("image to vector",),
    loads=("image-classification",),
)
IMAGE_TO_IMAGE = _infer(
    *("image-to-image", "image-super-resolution", "super-resolution"),
    architectures=("ForImageSuperResolution",),
    kinds=("swin2sr",),
    infers=("image to image",),
)
VIDEO_CLASSIFICATION = _infer(
    "video-classification",
    architectures=("ForVideoClassification",),
    kinds=("videomae", "vivit", "timesformer"),
    infers=("video to labels",),
)
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
    kinds=("audio-spectrogram-transformer",),
    infers=("audio to labels",),
)
AUDIO_TO_AUDIO = _infer(
    *("audio-to-audio", "speech-to-speech", "voice-conversion"),
    architectures=("ForSpeechToSpeech", "EncodecModel", "DacModel", "MimiModel"),
    infers=("audio to audio",),
)
SPEECH_RECOGNITION = _infer(
    *("automatic-speech-recognition", "asr", "speech-to-text", "whisper", "moonshine"),
    architectures=(
        *("WhisperForConditionalGeneration", "MoonshineForConditionalGeneration", "ForCTC"),
        *("MoonshineStreamingForConditionalGeneration", "Speech2TextForConditionalGeneration"),
        *("SpeechEncoderDecoderModel", "SpeechT5ForSpeechToText"),
    ),
    calls=("TranscribeStream",),
    kinds=("whisper", "moonshine", "moonshine_streaming", "speech_to_text"),
    infers=("audio to text",),
    ids=("whisper", "moonshine"),
)
TEXT_TO_SPEECH = _infer(
    *("text-to-speech", "text-to-audio", "tts"),
    architectures=("VitsModel", "BarkModel", "SpeechT5ForTextToSpeech"),
    kinds=("vits", "bark"),
    infers=("text to audio",),
)
LITERT = _infer(
    "litert",
    "tflite",
    "lite-rt",
    infers=("tensors to tensors",),
)
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
OBJECT_DETECTOR = _vision("object-detector")
OBJECT_TRACKING = _vision("object-tracking", "object-tracker")
OBJECT_DETECTION_3D = _vision("object-detection-3d", "objectron")

# A model loaded as one of these replaces the default model of that task.
VISION_TASKS = (
    *(FACE_DETECTION, FACE_MESH, IRIS_TRACKING, HAND_TRACKING),
    *(POSE_TRACKING, HOLISTIC_TRACKING, SELFIE_SEGMENTATION, HAIR_SEGMENTATION),
    *(OBJECT_DETECTOR, OBJECT_TRACKING, OBJECT_DETECTION_3D),
)

PIPELINES: tuple[Pipeline, ...] = (*TEXT_PIPELINES, *VISION_TASKS)

_BY_NAME = {name: p for p in PIPELINES for name in (p.name, *p.aliases)}


def accepted_names() -> str:
    """All accepted pipeline types, for messages."""
    return ", ".join(sorted(_BY_NAME))


def named_pipeline(name: str) -> Pipeline | None:
    """As `find_pipeline`; None if there is no such type."""
    return _BY_NAME.get(name.strip().lower().replace("_", "-").replace(" ", "-"))


def find_pipeline(name: str) -> Pipeline:
    """The pipeline type of a name or alias, ignoring case; "_" and " " count as "-".

    Raises:
        UnknownPipelineError: no such type; the message lists the accepted names.
    """
    if pipeline := named_pipeline(name):
        return pipeline
    raise UnknownPipelineError(
        f"pipeline type {name[:80]!r} is unknown; it must be one of {accepted_names()}",
        field="pipeline_type",
    )


def pipeline_of_architecture(architecture: str, *, any_case: bool = False) -> Pipeline | None:
    """The pipeline type of an architecture, a class name such as LlamaForCausalLM.

    Args:
        architecture: the name.
        any_case: whether its case does not count, as in what people type.
    """

    def written(name: str) -> str:
        return name.lower() if any_case else name

    ends = [
        (len(suffix), pipeline)
        for pipeline in PIPELINES
        for suffix in pipeline.architecture_suffixes
        if written(architecture).endswith(written(suffix))
    ]
    return max(ends, key=lambda end: end[0])[1] if ends else None


def pipeline_of_kind(kind: str) -> Pipeline | None:
    """The pipeline type of a kind of models, such as "qwen2_vl", however it is written."""
    return _BY_KIND.get(_letters(kind))


def pipeline_of_hint(hint: str) -> Pipeline | None:
    """The pipeline type of an architecture hint: a kind of models, or a class; in any case."""
    hint = hint.strip()
    return pipeline_of_kind(hint) or pipeline_of_architecture(hint, any_case=True)


def pipeline_of_id(model_id: str) -> tuple[Pipeline, str] | None:
    """The pipeline type that a model's id suggests, and the word in it that does."""
    for pipeline in PIPELINES:
        for word in pipeline.ids:
            if re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", model_id.lower()):
                return pipeline, word
    return None


def _letters(kind: str) -> str:
    """A kind of models without what is written in different ways."""
    return re.sub(r"[^a-z0-9]", "", kind.lower())


_BY_KIND = {_letters(kind): pipeline for pipeline in PIPELINES for kind in pipeline.kinds}
