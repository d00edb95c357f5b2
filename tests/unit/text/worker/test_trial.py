"""A model that would fail at each call is refused at load, with the reason."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError, OutOfMemoryError, ServiceError
from tests.support.strange_models import change_json
from tests.support.text_pipeline import Tiny, spec_of
from text_svc.formats.load_errors import loading_errors
from text_svc.processes.specs import WorkerSpec
from text_svc.worker import pipelines
from text_svc.worker.trial import try_calls

# Every pipeline with its tiny models.
GOOD = [
    *(("bert", "feature-extraction"), ("bert", "tokenizer"), ("bert-nli", "text-classification")),
    *(("bert-nli", "zero-shot-classification"), ("bert-rank", "reranking")),
    *(("bert-ner", "token-classification"), ("t5", "summarization"), ("marian", "translation")),
    *(("nllb", "text2text-generation"), ("clip", "clip"), ("vit", "image-classification")),
    *(("vilt", "visual-question-answering"), ("blip-vqa", "visual-question-answering")),
    *[(name, "document-question-answering") for name in ("layoutlm", "layoutlmv3", "donut")],
    *[(name, "audio-to-audio") for name in ("encodec", "dac", "mimi")],
    *[(name, "audio-classification") for name in ("wav2vec2-sounds", "ast")],
    *[(name, "video-classification") for name in ("videomae", "timesformer", "vivit")],
    *(("bert-qa", "question-answering"), ("bert-mask", "fill-mask")),
    *(("florence2", "florence2"), ("blip", "image-to-text"), ("janus", "janus")),
    *[(name, "visual-language") for name in ("llava", "llava-chat", "smolvlm", "qwen2-vl")],
    *(("gemma3", "visual-language"), ("qwen2-audio", "visual-language"), ("clap", "clap")),
    *[(name, "automatic-speech-recognition") for name in ("whisper", "moonshine", "wav2vec2")],
    *(("vits", "text-to-speech"), ("detr", "object-detection")),
    *[(name, "zero-shot-object-detection") for name in ("owlvit", "grounding-dino")],
    *[(name, "image-segmentation") for name in ("segformer", "mask2former", "oneformer")],
    *[(name, "mask-generation") for name in ("sam", "sam-hq", "sam2")],
    *[(name, "depth-estimation") for name in ("depth-anything", "zoedepth", "depth-pro")],
    *[(name, "image-feature-extraction") for name in ("vit-features", "vit-mae", "dinov3")],
    ("swin2sr", "image-to-image"),
]


async def try_model(spec: WorkerSpec, seconds: float = 60) -> None:
    """Loads a model and tries it, as a worker does."""
    loaded = pipelines.load(spec)
    with loading_errors(spec.model_id, spec.folder):
        await try_calls(spec.model_id, loaded.handlers, loaded.trial, seconds)


@pytest.mark.parametrize(("name", "pipeline"), GOOD)
async def test_a_good_model_answers(tiny: Tiny, name: str, pipeline: str) -> None:
    await try_model(spec_of(tiny(name), pipeline))


def test_every_pipeline_has_a_trial() -> None:
    """That of litert is in pipelines/test_litert.py, with models of its own."""
    assert {
        "text-generation",
        "litert",
        *(pipeline for _, pipeline in GOOD),
    } == pipelines.CLASSES.keys()


@pytest.mark.parametrize("engine", ["transformers", "openvino"])
async def test_a_language_model_answers_and_nothing_is_counted(
    llama: Path, converted_llama: Path, engine: str
) -> None:
    spec = spec_of(
        llama, "chat", engine=engine, converted=converted_llama, cache_bytes=1 << 24
    ).model_copy(update={"model_id": f"tried-by-{engine}"})
    await try_model(spec)
    count = REGISTRY.get_sample_value("text_batch_answers_count", {"model": spec.model_id})
    assert count == 0


def changed(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / file, **changes)


def without_start_token(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        content.pop("decoder_start_token_id", None)
        (folder / name).write_text(json.dumps(content))


PROCESSOR = "processor_config.json"
# A tiny model, its pipeline, what is wrong with it, and words of the reason. Each of them loads.
BAD: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("t5", "summarization", without_start_token, "`decoder_start_token_id`"),
    ("qwen2-vl", "visual-language", changed("config.json", image_token_id=3), "do not match"),
    ("clip", "clip", changed(PROCESSOR, image_processor={"do_resize": False}), "doesn't match"),
    ("blip", "image-to-text", changed(PROCESSOR, image_processor={}), "must match"),
    ("clap", "clap", changed(PROCESSOR, feature_extractor={"feature_size": 32}), "elements"),
    (
        "whisper",
        "automatic-speech-recognition",
        changed("generation_config.json", no_timestamps_token_id=None),
        "TypeError",
    ),
]


@pytest.mark.parametrize(("name", "pipeline", "spoil", "reason"), BAD)
async def test_a_model_that_fails_at_each_call_is_refused(
    tiny: Tiny, tmp_path: Path, name: str, pipeline: str, spoil: Callable[[Path], None], reason: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny(name), folder)
    spoil(folder)
    spec = spec_of(folder, pipeline)
    assert pipelines.load(spec).trial
    with pytest.raises(InvalidModelError, match=reason) as caught:
        await try_model(spec)
    assert str(tmp_path) not in caught.value.message


async def test_a_voice_is_tried_with_its_own_letters(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("vits"), folder)
    letters = {letter: index for index, letter in enumerate("_ абвгдежзиклмнопрстуфхцчшщ")}
    (folder / "vocab.json").write_text(json.dumps(letters))
    await try_model(spec_of(folder, "text-to-speech"))


async def test_an_option_may_leave_no_room_for_a_trial(llama: Path) -> None:
    await try_model(spec_of(llama, "chat", {"max_length": "1"}, cache_bytes=1 << 24))


async def test_a_model_that_is_slow_is_served_all_the_same() -> None:
    cancelled = asyncio.Event()

    async def handler(_: pb.InferRequest) -> pb.InferResponse:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        return pb.InferResponse()

    begun = time.monotonic()
    await try_calls("slow", {"Infer": handler}, [("Infer", pb.InferRequest())], 0.05)
    assert cancelled.is_set()
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (OutOfMemoryError("the call takes more memory"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
        (InvalidArgumentError("the model's processor refuses the prompt"), InvalidModelError),
        (KeyError("pixel_values"), InvalidModelError),
    ],
)
async def test_the_reason_of_a_refusal(raised: Exception, error: type[ServiceError]) -> None:
    async def handler(_: pb.InferRequest) -> pb.InferResponse:
        raise raised

    with pytest.raises(error), loading_errors("org/name"):
        await try_calls("org/name", {"Infer": handler}, [("Infer", pb.InferRequest())], 60)
