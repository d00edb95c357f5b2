"""GenerateText and ChatCompletion: what a request asks for is done or refused, never left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ml import transformers_pb2 as pb
from shared.errors import FailedPreconditionError, InvalidArgumentError, OutOfRangeError
from tests.support import tiny_text
from tests.support.text_pipeline import spec_of
from text_svc.worker.answers.formats import named
from text_svc.worker.answers.reasoning import KNOWN_MARKS
from text_svc.worker.engines.base import Generation, Limits, StepOutput, TokenScore
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import OPTIONAL, Sampling, SamplingDefaults
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.generation.service import GenerationHandlers
from text_svc.worker.tokenizers.fast import FastTokenizer

USER = pb.ChatMessage(role="user", content="the sea?")
TOOL = pb.Tool(name="weather", parameters="{}")
REGEX = pb.ResponseFormat(regex="a+")
# Fields that not every engine has, beside those that need no engine.
OPTIONS: dict[str, Any] = {
    "response_format": REGEX,
    "min_p": 0.25,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "ignore_eos": True,
    "min_tokens": 2,
    "logit_bias": {3: 1.0},
    "logprobs": True,
    "top_logprobs": 2,
}
# Fields that `TextGenerator` and the handlers act upon with each engine.
OTHERS = {
    *("prompt", "model", "max_length", "max_tokens", "messages", "temperature", "top_p", "top_k"),
    *("stop", "seed", "repetition_penalty", "images", "audio", "n"),
    *("tools", "tool_choice", "tool_name", "parallel_tool_calls", "separate_reasoning", "think"),
}
REFUSED = {"echo", "prompt_only"}


class Engine:
    """An engine that writes a token three times, and keeps what it was asked for."""

    def __init__(self, features: frozenset[str]) -> None:
        self.limits = Limits(1000, 16, 16, features=features, vocabulary=100)
        self.asked: list[Sampling] = []
        self.compiled: list[Form] = []
        self.token = 0
        self._writing: list[asyncio.Future[None]] = []

    async def compile(self, form: Form) -> None:
        self.compiled.append(form)

    def submit(self, generation: Generation) -> None:
        self.asked.append(generation.sampling)
        self._writing.append(asyncio.ensure_future(self._write(generation)))

    async def _write(self, generation: Generation) -> None:
        scores = [TokenScore(self.token, -0.5)] if generation.sampling.logprobs else []
        for reason in (None, None, "length"):
            generation.put(StepOutput((self.token,), 1, reason, scores=scores))
            await asyncio.sleep(0)

    def cancel(self, generation: Generation) -> None:
        """It ends by itself."""

    async def close(self) -> None:
        """It has no threads."""


class Model:
    """The handlers of a model whose engine has some features."""

    def __init__(self, folder: Path, features: frozenset[str]) -> None:
        tiny_text.save_tokenizer(folder, tiny_text.TOOLS_TEMPLATE)
        tokenizer = FastTokenizer(folder)
        self.engine = Engine(features)
        self.engine.token = tokenizer.encode("sea", special=False)[-1]
        engine: Any = self.engine
        metrics = EngineMetrics("tiny")
        self.generator = TextGenerator(engine, tokenizer, SamplingDefaults(), metrics, 10_000)
        spec = spec_of(folder, "text-generation", {}, max_prompt_bytes=10_000)
        self.handlers = GenerationHandlers(self.generator, spec)

    async def text(self, **fields: Any) -> list[pb.TextResponse]:
        request = pb.TextRequest(prompt="the sea", **fields)
        return [each async for each in self.handlers.generate_text(request)]

    async def chat(self, **fields: Any) -> list[pb.ChatResponse]:
        request = pb.ChatRequest(messages=[USER], **fields)
        return [each async for each in self.handlers.chat_completion(request)]


Make = Callable[..., Model]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Model] = []

    def make(*features: str) -> Model:
        made.append(Model(tmp_path / str(len(made)), frozenset(features)))
        return made[-1]

    yield make
    for model in made:
        await model.generator.close()


def _fields(name: str) -> dict[str, Any]:
    return {name: OPTIONS[name]} | ({"logprobs": True} if name == "top_logprobs" else {})


def test_each_field_of_a_request_has_its_place_in_these_tests() -> None:
    assert set(OPTIONS) == set(OPTIONAL)
    for request in (pb.TextRequest, pb.ChatRequest):
        for field in request.DESCRIPTOR.fields:
            assert field.name in {*OPTIONS, *OTHERS, *REFUSED}, "who acts upon it?"


@pytest.mark.parametrize("name", OPTIONS)
async def test_an_engine_without_an_option_refuses_it(make: Make, name: str) -> None:
    model = make(*(set(OPTIONAL) - {name}))
    for call in (model.text, model.chat):
        with pytest.raises(InvalidArgumentError, match=f"{name} cannot be used") as caught:
            await call(**_fields(name))
        assert caught.value.field == name
    assert not model.engine.asked
    assert not model.engine.compiled


@pytest.mark.parametrize("name", OPTIONS)
async def test_an_engine_with_an_option_is_asked_for_it(make: Make, name: str) -> None:
    model = make(*OPTIONAL)
    for call in (model.text, model.chat):
        await call(**_fields(name))
        asked = getattr(model.engine.asked.pop(), name)
        assert asked == (Form("regex", "a+") if name == "response_format" else OPTIONS[name])


@pytest.mark.parametrize("name", sorted(REFUSED))
async def test_what_no_engine_has_is_refused(make: Make, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name} cannot be used"):
        await make(*OPTIONAL).text(**{name: True})


async def test_several_answers_end_one_by_one_and_the_last_has_usage(make: Make) -> None:
    model = make(*OPTIONAL)
    for responses in (
        await model.text(n=3, temperature=1, seed=7),
        await model.chat(n=3, temperature=1, seed=7, tools=[TOOL]),
    ):
        assert sorted(each.index for each in responses if each.finish_reason) == [0, 1, 2]
        assert [each.done for each in responses] == [False] * (len(responses) - 1) + [True]
        assert responses[-1].usage.generated_tokens == 9
    assert sorted(each.seed or 0 for each in model.engine.asked) == [7, 7, 8, 8, 9, 9]


async def test_a_number_of_answers_that_cannot_be_had_is_refused(make: Make) -> None:
    model = make()
    for call in (model.text, model.chat):
        for number in (-1, 17):
            with pytest.raises(OutOfRangeError, match="must be from 0 to 16"):
                await call(n=number, temperature=1)
        with pytest.raises(InvalidArgumentError, match="they would all be the same"):
            await call(n=2, temperature=0)


async def test_log_probabilities_come_with_an_answer_that_is_taken_apart(make: Make) -> None:
    responses = await make(*OPTIONAL).chat(logprobs=True, tools=[TOOL])
    assert [each.logprob for response in responses for each in response.logprobs] == [-0.5] * 3


async def test_a_form_and_tools_are_not_used_together(make: Make) -> None:
    model = make(*OPTIONAL)
    with pytest.raises(InvalidArgumentError, match="cannot be used with tools"):
        await model.chat(response_format=REGEX, tools=[TOOL])
    await model.chat(response_format=REGEX, tools=[TOOL], tool_choice="none")
    model.handlers.chat_model._reasoning = KNOWN_MARKS[0]
    await model.chat(
        response_format=REGEX, tools=[TOOL], tool_choice="none", separate_reasoning=True
    )
    with pytest.raises(InvalidArgumentError, match="must be one of json_object"):
        await model.chat(response_format=pb.ResponseFormat())


@pytest.mark.parametrize("token", [-1, 100])
async def test_a_bias_of_a_token_that_does_not_exist_is_refused(make: Make, token: int) -> None:
    with pytest.raises(InvalidArgumentError, match="the vocabulary has 100 tokens"):
        await make(*OPTIONAL).text(logit_bias={token: 1.0})


async def test_tokens_are_counted_as_the_call_reads_them(make: Make) -> None:
    model = make()
    counts = []
    for tools in ([], [TOOL]):
        request = pb.TokenCountRequest(messages=[USER], tools=tools)
        counts.append((await model.handlers.token_count(request)).tokens)
        assert (await model.chat(tools=tools))[-1].usage.prompt_tokens == counts[-1]
    assert counts[0] < counts[1]


async def test_tokens_of_strict_tools_are_counted_without_a_form(make: Make) -> None:
    strict = pb.Tool(name="weather", parameters='{"type": "null"}', strict=True)
    loose = pb.Tool(name="weather", parameters='{"type": "null"}')
    for model in (make(), make(*OPTIONAL)):
        model.handlers.chat_model._format = named("llama3")
        counts = [
            (
                await model.handlers.token_count(
                    pb.TokenCountRequest(messages=[USER], tools=[tool])
                )
            ).tokens
            for tool in (strict, loose)
        ]
        assert counts[0] == counts[1]
        with pytest.raises((FailedPreconditionError, InvalidArgumentError)):
            await model.chat(tools=[strict])
