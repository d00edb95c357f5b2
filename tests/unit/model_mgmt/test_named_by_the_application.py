"""Every pipeline type and architecture hint that the existing application sends.

They stand in the wire contract; its client sends them beside repositories of all kinds.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from model_mgmt_svc.resolve import Asked, Resolution, of_loaded, resolve
from shared.errors import PipelineMismatchError
from shared.files.client import ModelFiles
from shared.model_ids import ModelId
from shared.pipelines import find_pipeline, pipeline_of_hint
from tests.support.providers import Provider

MODEL = ModelId("org/name")

# A pipeline type, an architecture of a model that fits, and the type that it is loaded as.
TYPES = [
    # The application's own enum.
    ("text-generation", "LlamaForCausalLM", "text-generation"),
    ("image-to-text", "BlipForConditionalGeneration", "image-to-text"),
    ("feature-extraction", "BertModel", "feature-extraction"),
    ("automatic-speech-recognition", "WhisperForConditionalGeneration", None),
    ("text-to-speech", "VitsModel", "text-to-speech"),
    ("zero-shot-image-classification", "CLIPModel", "clip"),
    ("image-classification", "ViTForImageClassification", "image-classification"),
    ("object-detection", "DetrForObjectDetection", "object-detection"),
    ("depth-estimation", "DepthAnythingForDepthEstimation", "depth-estimation"),
    ("embedding", "BertModel", "feature-extraction"),
    ("image-segmentation", "SegformerForSemanticSegmentation", "image-segmentation"),
    # Tags that its cache knows.
    ("text2text-generation", "T5ForConditionalGeneration", "text2text-generation"),
    ("fill-mask", "BertForMaskedLM", "fill-mask"),
    ("token-classification", "BertForTokenClassification", "token-classification"),
    ("question-answering", "RobertaForQuestionAnswering", "question-answering"),
    ("summarization", "BartForConditionalGeneration", "summarization"),
    ("translation", "MarianMTModel", "translation"),
    ("text-classification", "DistilBertForSequenceClassification", "text-classification"),
    ("conversational", "GPT2LMHeadModel", "text-generation"),
    ("image-to-image", "Swin2SRForImageSuperResolution", "image-to-image"),
    ("audio-classification", "Wav2Vec2ForSequenceClassification", "audio-classification"),
    ("audio-to-audio", "SpeechT5ForSpeechToSpeech", "audio-to-audio"),
    ("sentence-similarity", "MPNetModel", "feature-extraction"),
    ("zero-shot-classification", "BartForSequenceClassification", "zero-shot-classification"),
    ("zero-shot-audio-classification", "ClapModel", "clap"),
    ("zero-shot-object-detection", "OwlViTForObjectDetection", "zero-shot-object-detection"),
    ("reranking", "XLMRobertaForSequenceClassification", "reranking"),
    # Task names of the service that it was written for.
    ("visual-language", "LlavaForConditionalGeneration", "visual-language"),
    ("tokenizer", "LlamaForCausalLM", "tokenizer"),
    ("document-question-answering", "LayoutLMForQuestionAnswering", "document-question-answering"),
    ("florence2", "Florence2ForConditionalGeneration", "florence2"),
    ("whisper", "WhisperForConditionalGeneration", "automatic-speech-recognition"),
    ("clip", "CLIPModel", "clip"),
    ("clap", "ClapModel", "clap"),
    ("janus", "JanusForConditionalGeneration", "janus"),
    ("multimodal", "Qwen2VLForConditionalGeneration", "visual-language"),
    ("code-generation", "Qwen2ForCausalLM", "text-generation"),
    ("text-similarity", "BertModel", "feature-extraction"),
    ("tokenization", "BertModel", "tokenizer"),
    ("cross-encoder", "BertForSequenceClassification", "reranking"),
]

# A hint, the type that the application sends with it, an architecture, and what is loaded.
HINTS = [
    *[
        (hint, "image-to-text", "Florence2ForConditionalGeneration", "florence2")
        for hint in ("florence2", "florence", "Florence2", "Florence-2", "FLORENCE_2")
    ],
    ("Florence2", "florence2", "Florence2ForConditionalGeneration", "florence2"),
    ("whisper", "automatic-speech-recognition", "WhisperForConditionalGeneration", None),
    ("moonshine", "automatic-speech-recognition", "MoonshineForConditionalGeneration", None),
    ("clip", "zero-shot-image-classification", "CLIPModel", "clip"),
    ("clip", "feature-extraction", "CLIPModel", "clip"),
    ("clip", "image-classification", "CLIPModel", "clip"),
    ("clap", "audio-classification", "ClapModel", "clap"),
    ("janus", "text-generation", "JanusForConditionalGeneration", "janus"),
    *[
        (hint, "text-generation", "Phi4MultimodalForCausalLM", "visual-language")
        for hint in ("phi3vision", "phi-3-vision", "Phi3Vision", "phi_3_vision")
    ],
    ("llava", "text-generation", "LlavaForConditionalGeneration", "visual-language"),
    ("llava", "image-to-text", "LlavaNextForConditionalGeneration", "visual-language"),
    *[
        (hint, "text-generation", "Qwen2VLForConditionalGeneration", "visual-language")
        for hint in ("qwen2vl", "qwen2-vl", "Qwen2 VL", "Qwen2VLForConditionalGeneration")
    ],
    ("generic", "text-generation", "LlamaForCausalLM", "text-generation"),
    ("Generic", "embedding", "BertModel", "feature-extraction"),
    ("", "text-generation", "Qwen2VLForConditionalGeneration", "visual-language"),
    ("generic", "text-generation", "LlavaForConditionalGeneration", "visual-language"),
    ("no-such-hint", "text-generation", "LlamaForCausalLM", "text-generation"),
]


@pytest.fixture
async def source() -> AsyncIterator[Provider]:
    async with Provider().running() as provider:
        yield provider


@pytest.fixture
async def files(source: Provider, tmp_path: Path) -> AsyncIterator[ModelFiles]:
    async with ModelFiles(source.address, tmp_path) as files:
        yield files


def publish(source: Provider, architecture: str, **config: object) -> None:
    content = json.dumps({"architectures": [architecture], **config}).encode()
    source.files = {f"{MODEL}/config.json": content}


def spellings(name: str) -> list[str]:
    return [name, name.upper(), name.title(), name.replace("-", "_"), name.replace("-", " ")]


@pytest.mark.parametrize(("name", "architecture", "loaded"), TYPES)
async def test_a_type_and_a_model_that_fits(
    files: ModelFiles, source: Provider, name: str, architecture: str, loaded: str | None
) -> None:
    publish(source, architecture)
    for written in spellings(name):
        asked = Asked(written)
        found = await resolve(files, MODEL, asked)
        assert found.pipeline.name == (loaded or name)
        assert written in found.why
        # Its client compares the name that it sent.
        shown = asked.alias_of(found.pipeline) or found.pipeline.name
        assert shown == (written if found.pipeline is find_pipeline(written) else loaded)
    assert (await resolve(files, MODEL, Asked(name, "generic"))).pipeline.name == (loaded or name)


@pytest.mark.parametrize(("name", "architecture", "loaded"), TYPES)
async def test_a_model_whose_files_say_nothing_is_what_it_is_asked_for(
    files: ModelFiles, source: Provider, name: str, architecture: str, loaded: str | None
) -> None:
    publish(source, "NoSuchThing")
    assert (await resolve(files, MODEL, Asked(name))).pipeline is find_pipeline(name)
    assert find_pipeline(name).name == (loaded or name)


@pytest.mark.parametrize(("hint", "name", "architecture", "loaded"), HINTS)
async def test_a_hint_goes_before_the_type(
    files: ModelFiles,
    source: Provider,
    hint: str,
    name: str,
    architecture: str,
    loaded: str | None,
) -> None:
    publish(source, architecture)
    found = await resolve(files, MODEL, Asked(name, hint))
    assert found.pipeline.name == (loaded or name)
    assert found.why
    again = of_loaded(found.pipeline, Asked(name, hint))
    assert again == Resolution(found.pipeline, "")


@pytest.mark.parametrize(
    ("name", "hint", "architecture", "words"),
    [
        ("text-generation", "", "BertModel", ("text-generation", "feature-extraction")),
        ("text-generation", "generic", "CLIPModel", ("CLIPModel", "clip", "GenerateText")),
        ("text-generation", "", "T5ForConditionalGeneration", ("text2text", "ChatCompletion")),
        ("text-classification", "", "CLIPModel", ("text-classification", "clip", "text to labels")),
        ("image-to-text", "", "ViTForImageClassification", ("image-to-text", "image to text")),
        ("image-classification", "", "CLIPModel", ("image to labels", "clip")),
        ("object-detection", "", "OwlViTForObjectDetection", ("zero-shot-object-detection",)),
        ("automatic-speech-recognition", "whisper", "LlamaForCausalLM", ("TranscribeStream",)),
        ("image-to-text", "florence2", "LlamaForCausalLM", ("'florence2'", "LlamaForCausalLM")),
        ("visual-language", "", "LlamaForCausalLM", ("visual-language", "text-generation")),
        ("embedding", "", "ViTModel", ("'embedding'", "image-feature-extraction")),
    ],
)
async def test_what_cannot_answer_is_refused_with_both(
    files: ModelFiles,
    source: Provider,
    name: str,
    hint: str,
    architecture: str,
    words: tuple[str, ...],
) -> None:
    publish(source, architecture)
    with pytest.raises(PipelineMismatchError) as caught:
        await resolve(files, MODEL, Asked(name, hint))
    assert all(word in caught.value.message for word in words), caught.value.message


async def test_a_hint_that_does_not_fit_leaves_the_type(
    files: ModelFiles, source: Provider
) -> None:
    publish(source, "LlamaForCausalLM")
    found = await resolve(files, MODEL, Asked("text-generation", "whisper"))
    assert found.pipeline.name == "text-generation"
    assert "'text-generation'" in found.why


@pytest.mark.parametrize(
    ("config", "loaded", "word"),
    [
        ({"model_type": "florence2"}, "florence2", "model_type florence2"),
        ({"model_type": "qwen2_vl", "architectures": ["Own"]}, "visual-language", "qwen2_vl"),
        ({"pipeline_tag": "image-segmentation"}, "image-segmentation", "pipeline_tag"),
        ({"architectures": ["CLIPModel"], "pipeline_tag": "text-generation"}, "clip", "CLIPModel"),
    ],
)
async def test_what_config_says_in_its_order(
    files: ModelFiles, source: Provider, config: dict[str, object], loaded: str, word: str
) -> None:
    source.files = {f"{MODEL}/config.json": json.dumps(config).encode()}
    found = await resolve(files, MODEL, Asked())
    assert found.pipeline.name == loaded
    assert word in found.why


@pytest.mark.parametrize(
    ("name", "config", "loaded"),
    [
        ("openai/whisper-tiny", {}, "automatic-speech-recognition"),
        ("x/moonshine-base", {}, "automatic-speech-recognition"),
        ("deepseek-ai/Janus-Pro-1B", {}, "janus"),
        ("microsoft/Florence-2-base", {}, "florence2"),
        ("laion/clap-htsat-unfused", {}, "clap"),
        ("openai/clip-vit-base-patch32", {}, "clip"),
        ("BAAI/bge-reranker-base", {"num_labels": 1}, "reranking"),
        ("cross-encoder/ms-marco", {"id2label": {"0": "LABEL_0"}}, "reranking"),
        ("cross-encoder/nli-base", {"id2label": {"0": "a", "1": "b"}}, "text-classification"),
        ("BAAI/bge-reranker-base", {}, "text-classification"),
        ("org/name", {"num_labels": 1, "sentence_transformers": {}}, "reranking"),
        ("org/regression", {"num_labels": 1}, "text-classification"),
    ],
)
async def test_well_known_ids_count_where_nothing_else_says_it(
    files: ModelFiles, source: Provider, name: str, config: dict[str, object], loaded: str
) -> None:
    if loaded in ("reranking", "text-classification"):
        config = {"architectures": ["BertForSequenceClassification"], **config}
    source.files = {f"{name}/config.json": json.dumps(config).encode()}
    assert (await resolve(files, ModelId(name), Asked())).pipeline.name == loaded


@pytest.mark.parametrize(
    ("name", "asked", "published", "loaded"),
    [
        (
            "google/gemma-3n-E4B-it-litert-lm",
            Asked("text-generation"),
            "gemma-3n-E4B-it-int4.litertlm",
            "text-generation",
        ),
        ("org/small-chat", Asked(), "small-chat.litertlm", "text-generation"),
        ("org/Small-Chat", Asked("text-generation", "generic"), "model.litertlm", None),
        ("org/name", Asked("litert"), "name.tflite", "litert"),
        ("org/Name-LiteRT", Asked("lite-rt"), "name_float32.tflite", "litert"),
        ("org/name-tflite", Asked(), "name.tflite", "litert"),
        ("org/detector", Asked("object-detection"), "detector.tflite", "object-detector"),
        ("org/x", Asked("object-detection", file="a/b.tflite"), "", "object-detector"),
        ("org/x", Asked("", file="a/b.tflite"), "", "litert"),
        ("org/x", Asked("chat", file="b.litertlm"), "", "text-generation"),
    ],
)
async def test_a_model_that_is_one_file(
    files: ModelFiles,
    source: Provider,
    name: str,
    asked: Asked,
    published: str,
    loaded: str | None,
) -> None:
    source.files = {f"{name}/{published}": b"content"} if published else {}
    found = await resolve(files, ModelId(name), asked)
    assert found.pipeline.name == (loaded or asked.pipeline_type)
    assert found.file == published
    assert (published or asked.file) in found.why or "pipeline type" in found.why


async def test_a_detector_of_transformers_stays_one(files: ModelFiles, source: Provider) -> None:
    publish(source, "DetrForObjectDetection")
    source.files[f"{MODEL}/name.tflite"] = b"content"
    found = await resolve(files, MODEL, Asked("object-detection"))
    assert (found.pipeline.name, found.file) == ("object-detection", "")
    litert = await resolve(files, MODEL, Asked("tflite"))
    assert (litert.pipeline.name, litert.file) == ("litert", "name.tflite")


async def test_a_file_for_another_type_is_refused_with_both(files: ModelFiles) -> None:
    for name, file in (("embedding", "x.litertlm"), ("image-segmentation", "x.tflite")):
        with pytest.raises(PipelineMismatchError, match=file):
            await resolve(files, MODEL, Asked(name, file=file))


def test_every_hint_of_the_contract_is_known() -> None:
    hints = ["florence2", "florence", "whisper", "moonshine", "clip", "clap", "janus"]
    hints += ["phi3vision", "phi-3-vision", "llava", "qwen2vl", "qwen2-vl"]
    assert all(pipeline_of_hint(hint) for name in hints for hint in spellings(name))


def test_another_type_than_the_loaded_one_is_kept_for_the_refusal() -> None:
    asked = Asked("text-generation")
    assert of_loaded(find_pipeline("embedding"), asked).pipeline.name == "text-generation"
    assert of_loaded(find_pipeline("vlm"), asked).pipeline.name == "visual-language"
    assert of_loaded(find_pipeline("clip"), Asked()).pipeline.name == "clip"
