"""What a key-value cache takes: nothing before it is used, more with use, and nothing when idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from tests.unit.text.worker.engines.test_engines import (
    CONTEXT,
    PROMPTS,
    answer,
    greedy,
    openvino_engine,
    rests,
)
from text_svc.torch_models.causal_lm import load_causal_lm
from text_svc.worker.engines import openvino
from text_svc.worker.engines.base import Limits
from text_svc.worker.engines.cache_blocks import CacheBlocks
from text_svc.worker.engines.litert_lm import LiteRtLmEngine
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.openvino import BLOCK_TOKENS, OpenVinoEngine
from text_svc.worker.engines.sampling import SamplingDefaults
from text_svc.worker.engines.torch_batch.eligibility import layer_shapes
from text_svc.worker.engines.torch_batch.engine import BatchEngine
from text_svc.worker.engines.torch_batch.kv_cache import LayerShape, RowCache
from text_svc.worker.engines.torch_batch.model import BatchModel
from text_svc.worker.engines.transformers import TransformersEngine
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.tokenizers.fast import FastTokenizer

# Of `tiny_text.save_llama`: keys and values of two layers with two heads of 16 numbers.
TOKEN_NUMBERS = 2 * 2 * 2 * 16


def written(*sequences: tuple[list[int], list[int]], blocks: int = 100) -> int:
    """Blocks of four tokens that generations of these prompts and answers have written."""
    count = CacheBlocks(blocks, 4)
    for prompt, new in sequences:
        count.write(prompt, ended=False)
        count.write(prompt + new, ended=True)
    return count.written


def test_blocks_are_counted_once_for_texts_that_begin_alike() -> None:
    ten = list(range(10))
    assert written((ten, [])) == 3
    assert written((ten, [10])) == 3
    assert written((ten, [10, 11, 12])) == 4
    assert written((ten, []), (ten, [])) == 3
    # The second has the first two blocks of the first one, and two of its own.
    assert written((ten, []), ([*ten[:8], 90, 91, 92, 93, 94], [])) == 5
    # The same tokens after others are other keys and values.
    assert written((ten, []), ([7, *ten], [])) == 6


def test_blocks_are_at_most_those_there_are() -> None:
    assert written(*(([each] * 40, []) for each in range(5)), blocks=20) == 20
    count = CacheBlocks(2, 4)
    count.write(list(range(40)), ended=True)
    count.clear()
    assert count.written == 0
    count.write(list(range(4)), ended=False)
    assert count.written == 1


def test_a_cache_of_rows_takes_its_pages_when_they_are_written() -> None:
    cache = RowCache([LayerShape(4, 64, 64)] * 2, 4096, torch.float32, "cpu")
    assert cache.num_bytes == 2 * 2 * 4096 * 4 * 64 * 4
    assert cache.taken_bytes == 0
    cache.resize(1024, 0, 0)
    tokens = torch.arange(512)
    cache.select(1, 1, 0, 512, tokens + 1024)
    new = torch.ones(1, 4, 512, 64)
    for layer in range(2):
        keys, _ = cache.update(new, new, layer)
        assert torch.equal(keys, new)
    assert cache.taken_bytes == cache.num_bytes // 8
    cache.give_back()
    assert cache.taken_bytes == 0
    assert all(not pool.any() for pool in cache._all())


@pytest.fixture(params=["batch", "openvino"])
async def generator(
    request: pytest.FixtureRequest, llama: Path, converted_llama: Path
) -> AsyncIterator[TextGenerator]:
    limits = Limits(CONTEXT, 4, 4)
    if request.param == "openvino":
        engine = openvino_engine(llama, limits, 64, ())
    else:
        model = load_causal_lm(llama, torch.float32)
        batch = BatchModel(model, layer_shapes(model), 64 * BLOCK_TOKENS)
        engine = BatchEngine(batch, limits, (), EngineMetrics("tiny"))
    made = TextGenerator(
        engine, FastTokenizer(llama), SamplingDefaults(), EngineMetrics("tiny"), 1 << 20
    )
    yield made
    await rests(made)
    await made.close()


async def test_a_cache_grows_with_use_and_is_given_back(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "MIN_GIVEN_BACK_BYTES", 1)
    monkeypatch.setattr(openvino, "MAX_RENEWAL_SECONDS", 1000)
    engine = generator._engine
    assert engine.cache_bytes == 0
    text, _ = await answer(generator, PROMPTS[0], greedy(20))
    first = engine.cache_bytes
    assert first > 0
    for prompt in PROMPTS[1:4]:
        await answer(generator, prompt, greedy(80))
    assert first < engine.cache_bytes <= engine.cache_limit_bytes
    await engine.give_back()
    assert engine.cache_bytes == 0
    assert (await answer(generator, PROMPTS[0], greedy(20)))[0] == text
    assert engine.cache_bytes == first


async def test_the_figures_of_openvino_are_those_of_its_blocks(
    llama: Path, converted_llama: Path
) -> None:
    engine = openvino_engine(llama, Limits(CONTEXT, 4, 4), 64, ())
    assert isinstance(engine, OpenVinoEngine)
    generator = TextGenerator(
        engine, FastTokenizer(llama), SamplingDefaults(), EngineMetrics("tiny"), 1 << 20
    )
    _, last = await answer(generator, PROMPTS[0], greedy(60))
    assert last.usage is not None
    block = BLOCK_TOKENS * TOKEN_NUMBERS * openvino.NUMBER_BYTES
    tokens = last.usage.prompt_tokens + last.usage.generated_tokens
    assert engine.cache_limit_bytes == 64 * block
    assert engine.cache_bytes == openvino.blocks_of(tokens) * block
    await generator.close()


async def test_a_generation_that_comes_while_a_cache_is_made_anew_waits_for_it(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "MIN_GIVEN_BACK_BYTES", 1)
    monkeypatch.setattr(openvino, "MAX_RENEWAL_SECONDS", 1000)
    before, _ = await answer(generator, PROMPTS[0], greedy(20))
    giving_back = asyncio.create_task(generator._engine.give_back())
    await asyncio.sleep(0)
    texts = await asyncio.gather(*(answer(generator, PROMPTS[0], greedy(20)) for _ in range(3)))
    assert [text for text, _ in texts] == [before] * 3
    await giving_back


async def test_a_cache_in_use_is_not_given_back(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "MIN_GIVEN_BACK_BYTES", 1)
    alone, _ = await answer(generator, PROMPTS[0], greedy(80))
    deltas = generator.generate(await generator.encode(PROMPTS[0]), greedy(80))
    text = (await anext(deltas)).text
    await generator._engine.give_back()
    text += "".join([delta.text async for delta in deltas])
    assert text == alone


async def test_a_model_that_is_slow_to_load_keeps_its_cache(
    llama: Path, converted_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "MIN_GIVEN_BACK_BYTES", 1)
    monkeypatch.setattr(openvino, "MAX_RENEWAL_SECONDS", 0)
    engine = openvino_engine(llama, Limits(CONTEXT, 4, 4), 64, ())
    generator = TextGenerator(
        engine, FastTokenizer(llama), SamplingDefaults(), EngineMetrics("tiny"), 1 << 20
    )
    await answer(generator, PROMPTS[0], greedy(20))
    before = engine.cache_bytes
    await engine.give_back()
    assert engine.cache_bytes == before > 0
    await generator.close()


@pytest.mark.parametrize(
    "engine", [OpenVinoEngine, BatchEngine, TransformersEngine, LiteRtLmEngine]
)
def test_every_engine_tells_of_its_cache(engine: type) -> None:
    for name in ("cache_bytes", "cache_limit_bytes", "give_back"):
        assert hasattr(engine, name), name
