"""The batched decode loop: rows that come and go, prompts in pieces, numbers that overflow."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.process import OUT_OF_MEMORY_EXIT
from text_svc.torch_models.causal_lm import load_causal_lm
from text_svc.worker.engines.base import Generation
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.sampling import Sampling
from text_svc.worker.engines.torch_batch.decoder import (
    PROMPT_TOKENS,
    BatchDecoder,
    needed,
)
from text_svc.worker.engines.torch_batch.eligibility import layer_shapes
from text_svc.worker.engines.torch_batch.forms import FormCompiler, Vocabulary
from text_svc.worker.engines.torch_batch.model import BatchModel

# Of the tiny model's tokens, whatever its tokenizer learns.
VOCABULARY = 256


@pytest.fixture(scope="module")
def model(llama: Path) -> Any:
    return load_causal_lm(llama, torch.float32)


def decoder(model: Any, tokens: int = 8192, rows: int = 16) -> BatchDecoder:
    return BatchDecoder(BatchModel(model, layer_shapes(model), tokens), (1,), rows)


def answer(number: int, prompt: int, new: int, **sampling: Any) -> Generation:
    """An answer to a prompt of so many tokens by chance."""
    source = random.Random(number)
    ids = [source.randrange(5, VOCABULARY) for _ in range(prompt)]
    return Generation(
        ids, Sampling(**({"temperature": 0, "top_p": 1} | sampling), max_new_tokens=new)
    )


def step(decoder: BatchDecoder, tokens: dict[Generation, list[int]]) -> int:
    """One step; its tokens are added. How many answers it brought forward."""
    results = decoder.step()
    for each, result in results:
        assert result.error is None
        tokens.setdefault(each, []).extend(result.tokens)
    return len(results)


def alone(model: Any, each: Generation) -> list[int]:
    """The tokens of an answer that has everything for itself."""
    single, tokens = decoder(model), {each: []}
    single.begin(each)
    while not single.idle:
        step(single, tokens)
    return tokens[each]


def together(
    many: BatchDecoder, answers: list[Generation]
) -> tuple[dict[Generation, list[int]], list[Generation]]:
    """The tokens of answers that are made at once, and those that failed."""
    tokens: dict[Generation, list[int]] = {}
    errors = []
    for each in answers:
        many.begin(each)
    while not many.idle:
        for each, result in many.step():
            tokens.setdefault(each, []).extend(result.tokens)
            errors += [each] if result.error else []
    return tokens, errors


def test_what_is_generated_alone_is_what_generate_does(model: Any) -> None:
    for seed in range(4):
        each = answer(seed, 7 + seed, 30)
        with torch.inference_mode():
            ids = model.generate(
                torch.tensor([each.prompt]), max_new_tokens=30, do_sample=False, pad_token_id=0
            )
        assert alone(model, each) == ids[0, len(each.prompt) :].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_answers_that_come_go_and_are_cancelled_leave_each_other_alone(
    model: Any, seed: int
) -> None:
    source = random.Random(seed)
    varied = (
        {},
        {"repetition_penalty": 1.3},
        {"temperature": 0.9, "top_p": 0.9, "seed": 5},
        {"temperature": 1.5, "top_k": 20, "seed": 6},
    )
    answers = [
        answer(
            100 * seed + number,
            source.choice((1, 3, 17, PROMPT_TOKENS, PROMPT_TOKENS + 40, 2 * PROMPT_TOKENS)),
            source.randint(1, 30),
            **varied[number % 4],
        )
        for number in range(14)
    ]
    # Room for four as long as the longest: whoever asks for more has to wait.
    many = decoder(model, tokens=4 * max(map(needed, answers)), rows=8)
    tokens: dict[Generation, list[int]] = {}
    ends, running, cancelled = {}, [], []
    waiting = list(answers)
    while waiting or not many.idle:
        while waiting and len(running) < 4 and source.random() < 0.5:
            running.append(waiting.pop())
            many.begin(running[-1])
        if many.idle:
            continue
        for each, result in many.step():
            assert each in running, "it ended or was cancelled"
            tokens.setdefault(each, []).extend(result.tokens)
            if result.finish_reason:
                ends[each] = result.finish_reason
                running.remove(each)
        if running and source.random() < 0.1:
            gone = running.pop(source.randrange(len(running)))
            many.cancel(gone)
            cancelled.append(gone)
    assert cancelled
    assert len(ends) + len(cancelled) == 14
    for each in answers:
        whole = alone(model, each)
        got = tokens.get(each, [])
        assert got == (whole if each in ends else whole[: len(got)])


def test_a_long_prompt_is_read_in_pieces_between_steps_of_others(model: Any) -> None:
    many, tokens = decoder(model), {}
    short, long = answer(1, 5, 50), answer(2, 4 * PROMPT_TOKENS, 5)
    many.begin(short)
    step(many, tokens)
    many.begin(long)
    while long not in tokens:
        before = len(tokens[short])
        step(many, tokens)
        step(many, tokens)
        assert len(tokens[short]) >= before + 1 or long in tokens
    assert len(tokens[short]) >= 4
    assert tokens[long] == alone(model, long)[: len(tokens[long])]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_cancelled_answer_is_gone_with_the_next_step(model: Any, after: int) -> None:
    many, tokens = decoder(model), {}
    first, second = answer(1, 2 * PROMPT_TOKENS, 50), answer(2, 4, 50)
    many.begin(first)
    many.begin(second)
    for _ in range(after):
        step(many, tokens)
    many.cancel(first)
    many.cancel(second)
    many.cancel(second)
    assert many.idle


def test_a_step_brings_all_forward(model: Any) -> None:
    many, tokens = decoder(model), {}
    for seed in range(16):
        many.begin(answer(seed, 4, 20))
    while len(tokens) < 16:
        step(many, tokens)
    assert step(many, tokens) == 16


@pytest.mark.parametrize("token", [7, 100_000])
def test_a_prompt_that_overflows_or_cannot_be_read_fails_alone(llama: Path, token: int) -> None:
    model = load_causal_lm(llama, torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.nan
        model.lm_head.weight[7] = 0  # it is never generated
    good = [answer(seed, 6, 20) for seed in range(4)]
    for each in good:
        each.prompt[:] = [8 if known == 7 else known for known in each.prompt]
    bad = answer(9, 6, 20)
    bad.prompt[3] = token
    tokens, errors = together(decoder(model), [*good[:2], bad, *good[2:]])
    assert errors == [bad]
    assert [tokens[each] for each in good] == [alone(model, each) for each in good]


def test_a_step_that_fails_ends_the_generation_at_fault_alone(llama: Path) -> None:
    model = load_causal_lm(llama, torch.float32)
    good = [answer(seed, 6, 25) for seed in range(4)]
    bad = answer(9, 30, 20)
    wholes = [alone(model, each) for each in (*good, bad)]

    def out_of_range(_: Any, __: Any, inputs: dict[str, torch.Tensor]) -> None:
        if int(inputs["position_ids"].max()) >= 40:
            raise IndexError("index out of range in self")

    many = decoder(model)
    model.register_forward_pre_hook(out_of_range, with_kwargs=True)
    tokens, errors = together(many, [*good[:2], bad, *good[2:]])
    assert errors == [bad]
    assert [tokens[each] for each in good] == wholes[:4]
    assert tokens[bad] == wholes[4][: 40 - 30 + 1]


def test_a_step_that_python_refuses_memory_ends_the_process(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal_lm(llama, torch.float32)
    many = decoder(model)
    many.begin(answer(0, 6, 4))

    def refused(*_: Any) -> None:
        raise MemoryError

    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    model.register_forward_pre_hook(refused)
    many.step()
    assert codes == [OUT_OF_MEMORY_EXIT]


def test_an_answer_whose_form_no_token_can_follow_fails_alone(model: Any) -> None:
    size = model.config.vocab_size
    tokens = ["", "", *("a" for _ in range(size - 2))]
    compiler = FormCompiler(Vocabulary(tokens, {}, [1]))
    good, bad = (
        answer(number, 4, 8, temperature=1, seed=3, response_format=Form("regex", regex))
        for number, regex in enumerate(("a{8}", "a\u20ac"))
    )
    for each in (good, bad):
        form = each.sampling.response_format
        assert form is not None
        each.form = compiler.compile(form.kind, form.text)
    got, errors = together(decoder(model), [good, bad])
    assert errors == [bad]
    assert len(got[good]) == 8
