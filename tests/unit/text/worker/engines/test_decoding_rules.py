"""What a model's generation config says beyond sampling parameters, compared with transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MinPLogitsWarper

from tests.support.text_pipeline import spec_of
from text_svc.convert.decoder import convert
from text_svc.convert.refused import RefusedError
from text_svc.torch_models.decoding_rules import PROCESSORS, WARPERS, decoding_rules
from text_svc.worker.engines.base import Generation
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import Sampling, SamplingDefaults, SamplingRequest
from text_svc.worker.engines.torch_batch.engine import BatchEngine
from text_svc.worker.engines.transformers import TransformersEngine, load

PROMPT = [5, 8, 13, 21, 34]
Folder = Callable[..., Path]


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Folder:
    """The tiny Llama with another generation config."""

    def make(**rules: Any) -> Path:
        copy = tmp_path / "model"
        shutil.copytree(llama, copy)
        path = copy / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | rules))
        return copy

    return make


async def generated(engine: Any, sampling: Sampling) -> list[int]:
    generation = Generation(PROMPT, sampling)
    engine.submit(generation)
    tokens: list[int] = []
    while True:
        for output in await generation.take():
            assert not output.error, output.error
            tokens += output.tokens
            if output.finish_reason:
                return tokens


def loaded(folder: Path) -> Any:
    engine, _, _ = load(spec_of(folder, "chat", cache_bytes=32 << 20), EngineMetrics("tiny"))
    return engine


@pytest.mark.parametrize(
    "rules",
    [
        {"no_repeat_ngram_size": 1, "stop_strings": ["never"]},
        {"suppress_tokens": list(range(60, 250))},
        {"begin_suppress_tokens": list(range(200, 300))},
        {"bad_words_ids": [[number] for number in range(60, 250)]},
        {"forced_eos_token_id": 7},
        {"sequence_bias": [[[70], 1000.0]]},
    ],
    ids=lambda rules: next(iter(rules)),
)
async def test_greedy_tokens_are_those_of_generate(folder: Folder, rules: dict[str, Any]) -> None:
    path = folder(**rules)
    own = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    own.generation_config.stop_strings = None  # they are texts, which tokens alone do not show
    ids = torch.tensor([PROMPT])
    expected = own.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, len(PROMPT) :].tolist()
    engine = loaded(path)
    assert isinstance(engine, TransformersEngine)
    tokens = await generated(engine, Sampling(temperature=0, top_p=1, max_new_tokens=12))
    await engine.close()
    assert tokens == [token for token in expected if token != own.generation_config.eos_token_id]
    own.generation_config = type(own.generation_config)(eos_token_id=1)
    plain = own.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, len(PROMPT) :].tolist()
    assert expected != plain, "the rule matters"


async def test_sampled_tokens_are_within_the_model_s_min_p(folder: Folder) -> None:
    path = folder(min_p=0.2)
    own = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        scores = own(torch.tensor([PROMPT])).logits[:, -1] / 6.0
    kept = MinPLogitsWarper(0.2)(torch.tensor([PROMPT]), scores)[0].isfinite()
    engine = loaded(path)
    sampling = Sampling(temperature=6.0, top_p=1, max_new_tokens=1)
    drawn = {(await generated(engine, sampling))[0] for _ in range(60)}
    await engine.close()
    assert len(drawn) > 1
    assert kept[list(drawn)].all()
    assert kept.sum() < len(kept) / 2


def test_openvino_leaves_such_a_model_to_transformers(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="generation config: no_repeat_ngram_size, min_p"):
        convert(folder(no_repeat_ngram_size=2, min_p=0.1), tmp_path / "converted", "float")


async def test_values_that_are_off_change_nothing(folder: Folder) -> None:
    off = PROCESSORS | {name: value for name, (value, _) in WARPERS.items()}
    path = folder(**off)
    own = AutoModelForCausalLM.from_pretrained(path)
    assert decoding_rules(own.generation_config) == []
    engine = loaded(path)
    assert isinstance(engine, BatchEngine)
    await engine.close()


def test_the_model_s_stop_strings_are_the_caller_s_too(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    for written in ("###", ["###"]):
        path.write_text(json.dumps({"stop_strings": written}))
        defaults = SamplingDefaults.read(tmp_path)
        assert defaults.complete(SamplingRequest(stop=["b"])).stop == ("b", "###")
