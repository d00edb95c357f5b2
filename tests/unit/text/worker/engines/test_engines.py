"""Each engine with a tiny model: what it generates, whom it lets in, how it ends."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shared.caller import CALLER_KEY, set_caller
from shared.errors import InvalidArgumentError, QueueFullError
from tests.support.stack import MODELS
from tests.support.waiting import until
from text_svc.torch_models.causal_lm import load_causal_lm
from text_svc.worker.engines.base import (
    Engine,
    Generation,
    Limits,
)
from text_svc.worker.engines.generation_threads import GenerationThreads
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.openvino import (
    BLOCK_TOKENS,
    OpenVinoEngine,
)
from text_svc.worker.engines.sampling import (
    Sampling,
    SamplingDefaults,
)
from text_svc.worker.engines.torch_batch.eligibility import layer_shapes, packed_model
from text_svc.worker.engines.torch_batch.engine import BatchEngine
from text_svc.worker.engines.torch_batch.model import BatchModel
from text_svc.worker.engines.transformers import TransformersEngine
from text_svc.worker.generation.generator import (
    Delta,
    TextGenerator,
)
from text_svc.worker.tokenizers.fast import FastTokenizer

PROMPTS = [f"{number} the sea and the sky" for number in range(16)]
CONTEXT = 128
# Of the tests of sampling.
DRAWS = 300
SMOLLM2 = MODELS / "text" / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
THINGS = (
    *("sea", "lighthouse", "winter", "train", "desert", "clock", "fox", "moon"),
    *("garden", "violin", "harbour", "mountain", "library", "storm", "river", "painter"),
)

Make = Callable[..., TextGenerator]


def openvino_engine(folder: Path, limits: Limits, blocks: int, end: tuple[int, ...]) -> Engine:
    return OpenVinoEngine(
        folder.parent / "converted" / "text-generation-float-1",
        limits=limits,
        end_tokens=end,
        cache_blocks=blocks,
        precision="f32",
        threads=1,
        metrics=EngineMetrics("tiny"),
    )


def batch_engine(folder: Path, limits: Limits, blocks: int, end: tuple[int, ...]) -> Engine:
    model = load_causal_lm(folder, torch.float32)
    batch = BatchModel(model, layer_shapes(model), blocks * BLOCK_TOKENS)
    return BatchEngine(batch, limits, end, EngineMetrics("tiny"))


def generate_engine(folder: Path, limits: Limits, blocks: int, end: tuple[int, ...]) -> Engine:
    model = load_causal_lm(folder, torch.float32)
    return TransformersEngine(model, limits, end, EngineMetrics("tiny"))


ENGINES = (openvino_engine, batch_engine, generate_engine)


@pytest.fixture(params=ENGINES)
async def make(
    request: pytest.FixtureRequest, llama: Path, converted_llama: Path
) -> AsyncIterator[Make]:
    made: list[TextGenerator] = []

    def make_generator(
        running: int = 16, waiting: int = 16, blocks: int = 128, end: tuple[int, ...] = ()
    ) -> TextGenerator:
        limits = Limits(min(CONTEXT, blocks * BLOCK_TOKENS), running, waiting)
        engine = request.param(llama, limits, blocks, end)
        made.append(
            TextGenerator(
                engine, FastTokenizer(llama), SamplingDefaults(), EngineMetrics("tiny"), 1 << 20
            )
        )
        return made[-1]

    yield make_generator
    for generator in made:
        await rests(generator)
        await generator.close()


async def rests(generator: TextGenerator) -> None:
    """Waits until its engine expects no more steps; else an idle process would count as hung."""
    work = work_of(generator)
    steps: Any = work.steps if isinstance(work, GenerationThreads) else work._steps
    await until(lambda: not steps._pieces)


def work_of(generator: TextGenerator) -> Any:
    """What keeps the generations of its engine: its threads, or the engine itself."""
    engine: Any = generator._engine
    threads = getattr(engine, "_threads", None)
    return threads if isinstance(threads, GenerationThreads) else engine


def greedy(tokens: int = 20, **changes: Any) -> Sampling:
    return Sampling(temperature=0, top_p=1, max_new_tokens=tokens, **changes)


async def answer(generator: TextGenerator, prompt: str, sampling: Sampling) -> tuple[str, Delta]:
    """The joined text of an answer, and its last delta."""
    deltas = [delta async for delta in generator.generate(await generator.encode(prompt), sampling)]
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    counts = [delta.tokens_generated for delta in deltas]
    assert counts == sorted(counts)
    return "".join(delta.text for delta in deltas), deltas[-1]


def reference(folder: Path, prompt: list[int], tokens: int, **options: Any) -> list[int]:
    """Greedy tokens of transformers' own `generate`, up to where two are as good as each other."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    best = torch.stack(output.scores)[:, 0].topk(2).values
    clear = (best[:, 0] - best[:, 1] > 0.02).long().cumprod(0).sum()
    return [int(token) for token in output.sequences[0, len(prompt) :][:clear]]


@pytest.mark.parametrize("penalty", [1.0, 1.4])
async def test_greedy_text_is_the_one_of_transformers(
    make: Make, llama: Path, penalty: float
) -> None:
    generator = make()
    tokenizer = FastTokenizer(llama)
    compared = 0
    for prompt in PROMPTS[:4]:
        text, last = await answer(generator, prompt, greedy(40, repetition_penalty=penalty))
        ids = tokenizer.encode(prompt, special=True)
        tokens = reference(llama, ids, 40, repetition_penalty=penalty)
        compared += len(tokens)
        if len(tokens) < 40:
            assert text.startswith(tokenizer.backend.decode(tokens).rstrip("\ufffd"))
            continue
        assert text == tokenizer.backend.decode(tokens, skip_special_tokens=True)
        assert last.finish_reason == "length"
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.generated_tokens) == (len(ids), 40)
        assert 0 <= last.usage.queue_seconds <= last.usage.first_token_seconds
    assert compared > 100


async def test_a_text_is_the_same_alone_and_among_others(make: Make) -> None:
    generator = make()
    seeded = Sampling(temperature=1.2, top_p=0.95, max_new_tokens=30, seed=7)
    for sampling in (greedy(30), seeded):
        alone = [(await answer(generator, prompt, sampling))[0] for prompt in PROMPTS]
        among = await asyncio.gather(*(answer(generator, prompt, sampling) for prompt in PROMPTS))
        assert [text for text, _ in among] == alone


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"there is no {SMOLLM2}: run `make models`")
async def test_text_of_a_real_model_among_sixteen_is_that_of_generate() -> None:
    model = load_causal_lm(SMOLLM2, torch.float32)
    shapes = layer_shapes(model)
    model, size = packed_model(model, lambda: pytest.fail("Llama needs no layers as they were"))
    assert size
    batch = BatchModel(model, shapes, 4096)
    engine = BatchEngine(batch, Limits(CONTEXT, 16, 0), (2,), EngineMetrics("real"))
    tokenizer = FastTokenizer(SMOLLM2)
    generator = TextGenerator(
        engine, tokenizer, SamplingDefaults(), EngineMetrics("real"), max_prompt_characters=1 << 20
    )
    prompts = [f"{number}. A story about the {thing} " for number, thing in enumerate(THINGS)]
    texts = await asyncio.gather(*(answer(generator, each, greedy(24)) for each in prompts))
    await generator.close()
    for prompt, (text, _) in list(zip(prompts, texts, strict=True))[::5]:
        tokens = reference(SMOLLM2, tokenizer.encode(prompt, special=True), 24)
        assert len(tokens) > 8
        assert text.startswith(tokenizer.backend.decode(tokens).rstrip("\ufffd"))


async def test_seeds_decide_and_without_one_chance_does(make: Make) -> None:
    generator = make()

    async def sampled(seed: int | None) -> str:
        sampling = Sampling(temperature=1.5, top_p=1, max_new_tokens=40, seed=seed)
        return (await answer(generator, PROMPTS[0], sampling))[0]

    assert await sampled(3) == await sampled(3)
    assert await sampled(3) != await sampled(4)
    assert await sampled(2**64 - 1) != await sampled(4)
    assert await sampled(None) != await sampled(None)


def shares(folder: Path, prompt: list[int], sampling: Sampling) -> torch.Tensor:
    """The probabilities of the first token as transformers has them, shape (vocabulary,)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        scores = model(ids).logits[:, -1]
    warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    warped: torch.Tensor = LogitsProcessorList(warpers)(ids, scores)
    return warped.softmax(-1)[0]


async def drawn(engine: Engine, prompt: list[int], sampling: Sampling) -> int:
    """The first token of an answer."""
    generation = Generation(prompt, sampling)
    engine.submit(generation)
    outputs = await generation.take()
    assert not outputs[0].error
    return outputs[0].tokens[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 6.0},
        {"temperature": 12.0, "top_k": 7},
        {"temperature": 6.0, "top_p": 0.6},
        {"temperature": 8.0, "top_k": 20, "top_p": 0.7},
    ],
    ids=["temperature", "top_k", "top_p", "all three"],
)
async def test_tokens_are_drawn_as_transformers_draws_them(
    make: Make, llama: Path, changes: dict[str, Any]
) -> None:
    generator = make(running=16, waiting=DRAWS)
    prompt = await generator.encode(PROMPTS[0])
    base = Sampling(**({"top_p": 1.0, "max_new_tokens": 1} | changes))
    engine: Any = generator._engine
    tokens = await asyncio.gather(
        *(drawn(engine, prompt, replace(base, seed=seed)) for seed in range(DRAWS))
    )
    expected = shares(llama, prompt, base)
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected)) / DRAWS
    assert expected.max() < 0.9, "there is something to draw"
    assert not counts[expected == 0].any(), "a token that is filtered out is never drawn"
    # The seeds are fixed, so this holds always or never.
    deviation = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((counts - expected).abs() <= 5 * deviation + 1 / DRAWS).all()
    assert (counts - expected).abs().sum() / 2 < 0.02 + deviation.sum() / 2


async def test_an_end_token_stops_and_is_no_text(make: Make, llama: Path) -> None:
    prompt = FastTokenizer(llama).encode(PROMPTS[0], special=True)
    tokens = reference(llama, prompt, 20)
    end = tokens[9]
    first = tokens.index(end)
    text, last = await answer(make(end=(399, end)), PROMPTS[0], greedy(20))
    assert last.finish_reason == "stop"
    assert last.tokens_generated == first + 1
    assert text == FastTokenizer(llama).backend.decode(tokens[:first], skip_special_tokens=True)


async def test_a_stop_string_across_tokens_ends_the_answer_and_does_not_leak(make: Make) -> None:
    generator = make()
    whole, _ = await answer(generator, PROMPTS[1], greedy(40))
    stop = whole[len(whole) // 2 :][:7]
    text, last = await answer(generator, PROMPTS[1], greedy(40, stop=("never there", stop)))
    assert text == whole[: whole.index(stop)]
    assert last.finish_reason == "stop"
    assert last.tokens_generated < 40


async def test_a_prompt_that_does_not_fit_is_refused_with_the_limit(make: Make) -> None:
    generator = make()
    for size in (CONTEXT, CONTEXT + 1, 50_000):
        with pytest.raises(InvalidArgumentError, match=f"limit is {CONTEXT}, generated"):
            await anext(generator.generate([5] * size, greedy()))
    with pytest.raises(InvalidArgumentError, match="empty"):
        await anext(generator.generate([], greedy()))


async def test_answers_end_where_the_context_does(make: Make) -> None:
    generator = make()
    deltas = [delta async for delta in generator.generate([5] * (CONTEXT - 3), greedy(1000))]
    assert (deltas[-1].finish_reason, deltas[-1].tokens_generated) == ("length", 3)


async def test_a_cache_for_one_serves_many_one_after_the_other(make: Make) -> None:
    roomy, tight = make(), make(blocks=2)
    sampling = greedy(30)
    alone = [(await answer(roomy, prompt, sampling))[0] for prompt in PROMPTS[:6]]
    texts = await asyncio.gather(*(answer(tight, prompt, sampling) for prompt in PROMPTS[:6]))
    assert [text for text, _ in texts] == alone


async def test_the_queue_is_bounded_and_a_cancelled_answer_frees_its_place(make: Make) -> None:
    generator = make(running=1, waiting=1)
    prompt = await generator.encode(PROMPTS[0])
    async with aclosing(generator.generate(prompt, greedy(100))) as running:
        await anext(running)
        waiting = asyncio.ensure_future(answer(generator, PROMPTS[1], greedy(5)))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as caught:
            await anext(generator.generate(prompt, greedy()))
        assert caught.value.retry_after
    _, last = await waiting
    assert last.tokens_generated == 5


async def test_a_waiting_answer_can_be_cancelled(make: Make) -> None:
    generator = make(running=1, waiting=2)
    prompt = await generator.encode(PROMPTS[0])
    async with aclosing(generator.generate(prompt, greedy(60))) as running:
        await anext(running)
        waiting = asyncio.ensure_future(answer(generator, PROMPTS[1], greedy(5)))
        await asyncio.sleep(0)
        waiting.cancel()
        rest = [delta async for delta in running]
        assert rest[-1].tokens_generated == 60
    assert (await answer(generator, PROMPTS[1], greedy(5)))[1].tokens_generated == 5


async def test_hundreds_of_cancelled_answers_leave_nothing_behind(make: Make) -> None:
    generator = make(running=8, waiting=100, blocks=8)

    async def begin_and_leave(index: int) -> None:
        prompt = await generator.encode(f"{index} {PROMPTS[index % 16]}")
        async with aclosing(generator.generate(prompt, greedy(200))) as deltas:
            for _ in range(index % 4):
                await anext(deltas)

    for start in range(0, 300, 100):
        await asyncio.gather(*(begin_and_leave(start + index) for index in range(100)))
    texts = await asyncio.gather(*(answer(generator, p, greedy(9)) for p in PROMPTS))
    assert [last.tokens_generated for _, last in texts] == [9] * 16
    kept = work_of(generator)
    await rests(generator)
    await generator.close()
    for work in ("_running", "_waiting", "_active"):
        assert not getattr(kept, work, None)
    assert getattr(kept, "_free_blocks", 8) == 8


async def test_callers_take_turns_and_none_keeps_the_others_out(make: Make) -> None:
    generator = make(running=1, waiting=3)
    ended: list[str] = []

    async def ask(name: str) -> None:
        set_caller({CALLER_KEY: name})
        await answer(generator, PROMPTS[0], greedy(30))
        ended.append(name)

    many = [asyncio.create_task(ask("a")) for _ in range(4)]
    await until(lambda: generator._places.taken == 4)
    with pytest.raises(QueueFullError, match="3 wait, which is the limit"):
        await ask("a")
    one = asyncio.create_task(ask("b"))
    with pytest.raises(QueueFullError, match="another caller has asked"):
        await many[3]
    await asyncio.gather(one, *many[:3])
    assert ended.index("b") <= 1
    assert generator._places.taken == 0
