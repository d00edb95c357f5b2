"""The choice of the next token against transformers' own processors."""

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.sampling import (
    MAX_SEED,
    Sampling,
)
from text_svc.worker.engines.torch_batch.forms import FormCompiler, FormMask, Vocabulary
from text_svc.worker.engines.torch_batch.sampler import (
    CANDIDATES,
    TokenSampler,
    next_tokens,
)

CPU = torch.device("cpu")
DRAWS = 4000


def sampling(**changes: Any) -> Sampling:
    return Sampling(**({"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 1} | changes))


def logits(size: int, spread: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) * spread


def shares(scores: torch.Tensor, asked: Sampling, prompt: list[int]) -> torch.Tensor:
    """Probabilities of all tokens as transformers has them."""
    processors: list[Any] = [RepetitionPenaltyLogitsProcessor(asked.repetition_penalty)]
    processors.append(TemperatureLogitsWarper(asked.temperature))
    if asked.top_k:
        processors.append(TopKLogitsWarper(asked.top_k))
    if asked.top_p < 1:
        processors.append(TopPLogitsWarper(asked.top_p))
    ids = torch.tensor([prompt])
    processed: torch.Tensor = LogitsProcessorList(processors)(ids, scores.clone())
    return processed.softmax(-1)[0]


CASES = {
    "temperature alone": (50, {}),
    "temperature alone, many tokens": (1000, {"temperature": 0.7}),
    "top_k": (1000, {"top_k": 7}),
    "top_k over the candidates": (1000, {"top_k": CANDIDATES + 100, "temperature": 5.0}),
    "top_p": (1000, {"top_p": 0.8}),
    "a tiny top_p": (1000, {"top_p": 1e-6}),
    "top_p over the candidates": (1000, {"top_p": 0.95, "temperature": 20.0}),
    "top_k, then top_p": (1000, {"top_k": 40, "top_p": 0.7, "temperature": 1.4}),
    "penalty": (50, {"repetition_penalty": 1.8, "top_p": 0.9}),
    "a small vocabulary": (20, {"top_k": 1000, "top_p": 0.9}),
}


@pytest.mark.parametrize(("size", "changes"), CASES.values(), ids=CASES)
def test_shares_are_those_of_transformers(size: int, changes: dict[str, Any]) -> None:
    asked, scores, prompt = sampling(seed=11, **changes), logits(size), [3, 4, 5]
    expected = shares(scores, asked, prompt)
    sampler = TokenSampler.of(asked, prompt, CPU)
    known = sampler.ids
    drawn: Counter[int] = Counter()
    for _ in range(DRAWS):
        sampler.ids = known
        drawn[int(next_tokens(scores.clone(), [sampler]))] += 1
    assert all(expected[token] > 0 for token in drawn)
    for token in expected.topk(5).indices.tolist():
        share = float(expected[token])
        # Five standard deviations; the seed is fixed.
        assert abs(drawn[token] / DRAWS - share) <= 5 * (share * (1 - share) / DRAWS) ** 0.5


def test_rows_of_a_batch_have_their_own_parameters_and_chance() -> None:
    asked = [
        sampling(temperature=0.0),
        sampling(seed=1, top_p=0.9),
        sampling(seed=1, top_p=0.9, repetition_penalty=1.5),
        sampling(seed=MAX_SEED, top_k=5),
        sampling(temperature=0.0, repetition_penalty=3.0),
        sampling(seed=2, temperature=30.0),
    ]
    steps = [
        torch.cat([logits(600, seed=10 * step + row) for row in range(6)]) for step in range(9)
    ]

    def tokens(rows: list[int]) -> list[list[int]]:
        samplers = [TokenSampler.of(asked[row], [1, 2, 3], CPU) for row in rows]
        chosen = [next_tokens(step[rows], samplers) for step in steps]
        return torch.stack(chosen, 1).tolist()

    together = tokens(list(range(6)))
    assert together == [tokens([row])[0] for row in range(6)]
    assert together[0] == [int(step[0].argmax()) for step in steps]


def test_a_penalty_counts_prompt_and_answer() -> None:
    scores = torch.tensor([[0.0, 5.0, 4.9, 4.8]])
    sampler = TokenSampler.of(sampling(temperature=0.0, repetition_penalty=2.0), [1], CPU)
    assert [int(next_tokens(scores.clone(), [sampler])) for _ in range(3)] == [2, 3, 1]


def test_without_a_seed_chance_decides() -> None:
    drawn = {
        tuple(int(next_tokens(logits(1000, 0.1, step), [sampler])) for step in range(8))
        for sampler in (TokenSampler.of(sampling(), (), CPU) for _ in range(3))
    }
    assert len(drawn) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_form_that_no_token_can_follow_ends_its_own_row_alone(temperature: float) -> None:
    compiler = FormCompiler(Vocabulary(["a", "b", ""], {}, [2]))
    asked = sampling(temperature=temperature, seed=1, response_format=Form("regex", "a"))
    stuck, good = (
        TokenSampler.of(asked, (), CPU, [2], FormMask(compiler.compile("regex", regex)))
        for regex in ("a\u20ac", "ab")
    )
    seen = []
    for step in range(3):
        tokens = next_tokens(torch.cat([logits(5, seed=step)] * 2), [stuck, good])
        seen.append((stuck.off_form, good.off_form, int(tokens[1])))
    assert seen == [(False, False, 0), (True, False, 1), (True, False, 2)]
