"""What requests may ask of tokens besides temperature and its like, against torch by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.torch_models.causal_lm import load_causal_lm
from text_svc.worker.engines import openvino
from text_svc.worker.engines.base import Engine, Limits
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.openvino import OpenVinoEngine
from text_svc.worker.engines.sampling import Sampling, SamplingDefaults
from text_svc.worker.engines.torch_batch import sampler
from text_svc.worker.engines.torch_batch.eligibility import layer_shapes
from text_svc.worker.engines.torch_batch.engine import BatchEngine
from text_svc.worker.engines.torch_batch.model import BatchModel
from text_svc.worker.generation.answers import several
from text_svc.worker.generation.generator import Delta, Prompt, TextGenerator
from text_svc.worker.tokenizers.fast import FastTokenizer

CONTEXT = 128
PROMPT = "the sea and the sky"
# Two tokens whose scores differ by less may change places: a cache has half-precision numbers.
MARGIN = 0.05


class Made:
    """A generator, and what the same model says by hand."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.tokenizer = FastTokenizer(folder)
        metrics = EngineMetrics("tiny")
        defaults = SamplingDefaults()
        self.generator = TextGenerator(engine, self.tokenizer, defaults, metrics, 1 << 20)
        self.features = engine.limits.features
        self.prompt = self.tokenizer.encode(PROMPT, special=True)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """Of the token after these."""
        logits: torch.Tensor = self._model(torch.tensor([ids])).logits[0, -1]
        return logits

    async def deltas(self, sampling: Sampling) -> list[Delta]:
        return [each async for each in self.generator.generate(self.prompt, sampling)]

    async def tokens(self, **changes: Any) -> list[int]:
        """Those of a greedy answer."""
        if "logprobs" in self.features:
            changes["logprobs"] = True
        return [
            score.token for each in await self.deltas(greedy(**changes)) for score in each.scores
        ]


def greedy(tokens: int = 24, **changes: Any) -> Sampling:
    return Sampling(temperature=0, top_p=1, max_new_tokens=tokens, **changes)


@pytest.fixture(scope="module")
def folders(llama: Path, converted_llama: Path) -> tuple[Path, Path]:
    return llama, converted_llama


@pytest.fixture(params=["openvino", "batch"])
async def made(request: pytest.FixtureRequest, folders: tuple[Path, Path]) -> AsyncIterator[Made]:
    folder, converted = folders
    end = (1,)
    if request.param == "openvino":
        limits = Limits(CONTEXT, 8, 16, features=openvino.FEATURES)
        engine: Engine = OpenVinoEngine(
            converted,
            limits=limits,
            end_tokens=end,
            cache_blocks=64,
            precision="f32",
            threads=1,
            metrics=EngineMetrics("tiny"),
        )
    else:
        model = load_causal_lm(folder, torch.float32)
        vocabulary = model.config.vocab_size
        limits = Limits(CONTEXT, 8, 16, features=sampler.FEATURES, vocabulary=vocabulary)
        batch = BatchModel(model, layer_shapes(model), 2048)
        engine = BatchEngine(batch, limits, end, EngineMetrics("tiny"))
    made = Made(folder, engine)
    yield made
    await made.generator.close()


async def test_log_probabilities_are_of_the_model_s_own_scores(made: Made) -> None:
    """Whatever the request changes before a token is chosen."""
    changes = {"repetition_penalty": 1.3, "presence_penalty": 1.0, "logprobs": True}
    for sampling in (
        greedy(**changes),
        Sampling(temperature=1.5, top_p=0.8, max_new_tokens=24, top_k=40, seed=3, **changes),
    ):
        ids = list(made.prompt)
        scores = [score for each in await made.deltas(sampling) for score in each.scores]
        assert len(scores) == 24
        for score in scores:
            expected = made.logits(ids).log_softmax(-1)[score.token]
            assert score.logprob == pytest.approx(float(expected), abs=MARGIN)
            ids.append(score.token)


async def test_the_likeliest_tokens_come_with_theirs(made: Made) -> None:
    if "top_logprobs" not in made.features:
        with pytest.raises(InvalidArgumentError, match="top_logprobs cannot be used"):
            await made.deltas(greedy(logprobs=True, top_logprobs=3))
        return
    ids = list(made.prompt)
    for delta in await made.deltas(greedy(4, logprobs=True, top_logprobs=3)):
        for score in delta.scores:
            expected = made.logits(ids).log_softmax(-1).topk(3)
            assert [token for token, _ in score.top] == expected.indices.tolist()
            values = [value for _, value in score.top]
            assert values == pytest.approx(expected.values.tolist(), abs=1e-3)
            assert score.top[0] == (score.token, score.logprob)
            ids.append(score.token)
    assert len(ids) == len(made.prompt) + 4


@pytest.mark.parametrize(
    "changes",
    [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 1.5},
        {"presence_penalty": -1.0, "frequency_penalty": 0.7},
        {"logit_bias": {40: 7.0, 300: -100.0}},
    ],
)
async def test_penalties_and_biases_change_the_scores(made: Made, changes: dict[str, Any]) -> None:
    if not made.features.issuperset(changes):
        with pytest.raises(InvalidArgumentError, match="cannot be used with this model"):
            await made.tokens(**changes)
        return
    ids, compared = list(made.prompt), 0
    for token in await made.tokens(**changes):
        scores = made.logits(ids)
        generated = torch.tensor(ids[len(made.prompt) :], dtype=torch.long)
        counts = generated.bincount(minlength=len(scores))
        scores -= changes.get("presence_penalty", 0) * (counts > 0)
        scores -= changes.get("frequency_penalty", 0) * counts
        for biased, bias in changes.get("logit_bias", {}).items():
            if biased < len(scores):
                scores[biased] += bias
        best = scores.topk(2)
        if best.values[0] - best.values[1] < MARGIN:
            break
        assert token == int(best.indices[0])
        ids.append(token)
        compared += 1
    assert compared > 5
    assert await made.tokens(**changes) != await made.tokens()


async def test_min_p_leaves_out_what_is_unlikely(made: Made) -> None:
    """All but the likeliest, if it is nearly 1; as transformers, if it is less."""
    sampling = Sampling(5.0, 1.0, 12, seed=1, min_p=0.999, logprobs=True)
    tokens = [score.token for each in await made.deltas(sampling) for score in each.scores]
    assert tokens == await made.tokens(tokens=12)
    seen = set()
    for seed in range(30):
        sampling = Sampling(2.0, 1.0, 1, seed=seed, min_p=0.4, logprobs=True)
        [score] = [score for each in await made.deltas(sampling) for score in each.scores]
        seen.add(score.token)
    probabilities = (made.logits(made.prompt) / 2).softmax(-1)
    assert len(seen) > 1
    for token in seen:
        assert probabilities[token] >= 0.39 * probabilities.max()


async def test_end_tokens_wait_for_min_tokens_and_are_ignored_if_asked(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the model's second greedy token is made one that ends the text."""
    tokens = await made.tokens(tokens=8)
    ends = tokens[1]
    engine: Any = made.generator._engine
    if isinstance(engine, OpenVinoEngine):
        monkeypatch.setattr(engine, "_end_tokens", [ends])
    else:
        monkeypatch.setattr(engine._decoder, "_end_tokens", frozenset([ends]))
    last = (await made.deltas(greedy(8)))[-1]
    assert (last.finish_reason, last.tokens_generated) == ("stop", tokens.index(ends) + 1)
    late = await made.deltas(greedy(8, min_tokens=4, logprobs=True))
    written = [score.token for each in late for score in each.scores]
    assert ends not in written[:4]
    assert written[0] == tokens[0] or tokens[0] == ends
    ignored = await made.deltas(greedy(8, ignore_eos=True))
    assert (ignored[-1].finish_reason, ignored[-1].tokens_generated) == ("length", 8)
    assert await made.tokens(tokens=8, ignore_eos=True) == tokens


async def test_several_answers_are_those_of_their_seeds(made: Made) -> None:
    prompt, sampling = Prompt(made.prompt), Sampling(1.5, 1.0, 12, seed=5)
    texts, ended = ["", "", ""], []
    async for index, delta in several(made.generator, prompt, sampling, 3):
        texts[index] += delta.text
        if delta.finish_reason:
            ended.append((index, delta.usage))
    alone = [
        "".join(each.text for each in await made.deltas(Sampling(1.5, 1.0, 12, seed=5 + index)))
        for index in range(3)
    ]
    assert texts == alone
    assert len(set(texts)) == 3
    assert sorted(index for index, _ in ended) == [0, 1, 2]
    assert [usage for _, usage in ended[:-1]] == [None, None]
    assert ended[-1][1] is not None
    assert ended[-1][1].generated_tokens == 36
    with pytest.raises(InvalidArgumentError, match="they would all be the same"):
        await anext(several(made.generator, prompt, greedy(), 3))


async def test_a_caller_that_leaves_ends_all_answers(made: Made) -> None:
    prompt, sampling = Prompt(made.prompt), Sampling(1.5, 1.0, 100)
    answers = several(made.generator, prompt, sampling, 4)
    await anext(answers)
    await asyncio.wait_for(answers.aclose(), 20)
    engine: Any = made.generator._engine
    assert not engine._running


def test_the_bytes_of_a_token_are_told_where_it_is_no_text(llama: Path) -> None:
    tokenizer = FastTokenizer(llama)
    [first, *_] = ids = tokenizer.encode("雪", special=False)
    if len(ids) > 1:
        assert tokenizer.token(first)[0] == "\ufffd"
    assert b"".join(tokenizer.token(each)[1] for each in ids) == "雪".encode()
    assert tokenizer.token(1) == ("</s>", b"")
    assert pb.TokenLogprob(utf8=tokenizer.token(first)[1]).utf8
