"""Forms of answers: followed, or refused before the first token, at nobody's cost."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import pytest_asyncio
import torch

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from tests.support.waiting import until
from text_svc.formats.manifest import TOKENIZER
from text_svc.torch_models.causal_lm import load_causal_lm
from text_svc.worker.answers.answer import Answer, AnswerForm
from text_svc.worker.answers.formats import MARKS, named
from text_svc.worker.engines import openvino, rehearsal
from text_svc.worker.engines.base import Engine, Limits
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.openvino import OpenVinoEngine
from text_svc.worker.engines.sampling import Sampling, SamplingDefaults
from text_svc.worker.engines.torch_batch import forms, sampler
from text_svc.worker.engines.torch_batch.eligibility import layer_shapes
from text_svc.worker.engines.torch_batch.engine import BatchEngine
from text_svc.worker.engines.torch_batch.forms import TorchForms
from text_svc.worker.engines.torch_batch.model import BatchModel
from text_svc.worker.generation.forced_calls import required_calls
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.generation.tools import read_tools
from text_svc.worker.tokenizers.fast import FastTokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

END = (1,)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 10, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
PERSON = pb.Tool(name="person", parameters=json.dumps(SCHEMA), strict=True)
# Some characters that would take minutes and much memory.
HOSTILE = "([a-z]{1,800}[0-9]{1,800}){1,800}"
# The same for the newer library of torch, which takes the first one in its stride.
HOSTILE_TOO = "|".join(
    f"([a-{last}]{{1,{least}}}[0-9]{{2,{least + 1}}}){{1,{least + 3}}}"
    for least in range(2, 62)
    for last in ascii_lowercase[1:]
)


def openvino_engine(folder: Path) -> Engine:
    return OpenVinoEngine(
        folder,
        limits=Limits(2048, 8, 16, features=openvino.FEATURES | {"response_format"}),
        end_tokens=END,
        cache_blocks=256,
        precision="f32",
        threads=1,
        metrics=EngineMetrics("tiny"),
    )


def batch_engine(folder: Path, tokenizer: FastTokenizer) -> Engine:
    model = load_causal_lm(folder, torch.float32, torch.device("cpu"))
    shapes = layer_shapes(model)
    assert shapes is not None
    size = model.config.vocab_size
    return BatchEngine(
        BatchModel(model, shapes, 8192),
        Limits(1024, 8, 16, features=sampler.FEATURES, vocabulary=size),
        END,
        EngineMetrics("tiny"),
        TorchForms(tokenizer, size, END, MARKS),
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["openvino", "transformers"])
async def generator(
    request: pytest.FixtureRequest, llama: Path, converted_llama: Path
) -> AsyncIterator[TextGenerator]:
    tokenizer, metrics = FastTokenizer(llama), EngineMetrics("tiny")
    if request.param == "openvino":
        engine = openvino_engine(converted_llama)
    else:
        engine = batch_engine(llama, tokenizer)
    generator = TextGenerator(engine, tokenizer, SamplingDefaults(), metrics, 1 << 20)
    yield generator
    await generator.close()


def rehearsal_of(generator: TextGenerator) -> Any:
    engine: Any = generator._engine
    return engine._rehearsal if isinstance(engine, OpenVinoEngine) else engine._forms._rehearsal


async def answer(
    generator: TextGenerator, form: Form | None, tokens: int = 400, seed: int | None = 1
) -> tuple[str, str]:
    """The text and why it ended; of a model that would write nonsense. Greedy without a seed."""
    temperature = 0 if seed is None else 1.5
    sampling = Sampling(temperature, 1.0, tokens, seed=seed, response_format=form)
    prompt = await generator.encode("the sea")
    deltas = [each async for each in generator.generate(prompt, sampling)]
    return "".join(each.text for each in deltas), str(deltas[-1].finish_reason)


def is_person(text: str) -> bool:
    person = json.loads(text)
    return (
        person.keys() == {"name", "age", "kind"}
        # This model writes bytes that are no UTF-8, and each of them reads as U+FFFD.
        and len(person["name"].replace("\ufffd", "")) <= 5
        and 10 <= person["age"] <= 99
        and person["kind"] in ("cat", "dog")
    )


GRAMMAR = 'root ::= "the " thing ("," thing)*\nthing ::= "sea" | "sky"'


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        (Form("regex", "(yes|no)-[0-9]{3}"), lambda text: re.fullmatch("(yes|no)-[0-9]{3}", text)),
        (
            Form("grammar", GRAMMAR),
            lambda text: re.fullmatch("the (sea|sky)(,(sea|sky))*", text),
        ),
        (Form.choice(["snow", "one, two", "Grüße"]), {"snow", "one, two", "Grüße"}.__contains__),
    ],
    ids=["regex", "grammar", "choice"],
)
async def test_answers_have_their_form(
    generator: TextGenerator, form: Form, fits: Callable[[str], Any]
) -> None:
    for seed in range(3):
        text, reason = await answer(generator, form, seed=seed)
        assert fits(text), text
        assert reason == "stop"


async def test_calls_are_forced(generator: TextGenerator) -> None:
    """Beside each other, and special tokens among their marks."""
    request = read_tools(pb.ChatRequest(tools=[PERSON], tool_choice="required"))
    assert request is not None
    reasons = set()
    for name in ("hermes", "mistral", "gemma4"):
        wanted = required_calls(named(name).syntax(""), request)
        text, reason = await answer(generator, wanted, 600, seed=3)
        taken = Answer(AnswerForm(request.tools, named(name)))
        pieces = taken.add(text) + taken.end()
        assert {piece.content for piece in pieces} == {""}, text
        reasons.add(reason)
        if reason == "stop":
            assert taken.calls, text
        first = "".join(
            piece.call.arguments for piece in pieces if piece.call and piece.call.index == 0
        )
        assert taken.calls < 2 or is_person(first), text
    assert "stop" in reasons


async def test_json_fits_its_schema_or_is_cut_by_length(generator: TextGenerator) -> None:
    """Beside each other, and beside an answer that has no form."""
    form = Form("json_schema", json.dumps(SCHEMA))
    free = asyncio.create_task(answer(generator, None, 60))
    answers = await asyncio.gather(*(answer(generator, form, seed=seed) for seed in range(4)))
    whole = [text for text, reason in answers if reason == "stop"]
    assert whole
    for text in whole:
        assert is_person(text), text
    assert (await free) == await answer(generator, None, 60)
    text, reason = await answer(generator, form, tokens=3)
    assert reason == "length"
    assert text.startswith("{")
    text, reason = await answer(generator, Form.json_object(), tokens=40)
    assert text.startswith("{")


@pytest.mark.parametrize(
    "form",
    [
        Form("regex", "(a"),
        Form("grammar", 'root ::= other "a"'),
        Form("json_schema", json.dumps({"type": "string", "pattern": f"^{HOSTILE}$"})),
        Form("regex", HOSTILE),
    ],
    ids=["regex", "grammar", "hostile schema", "hostile regex"],
)
async def test_a_form_that_cannot_be_compiled_is_refused_and_harms_nobody(
    generator: TextGenerator, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on while it is tried, and it is not tried again."""
    if not isinstance(generator._engine, OpenVinoEngine):
        if form.kind != "regex":
            pytest.skip("each of them costs a new process")
        form = Form(form.kind, form.text.replace(HOSTILE, HOSTILE_TOO))
    monkeypatch.setattr(rehearsal, "WALL_SECONDS", 3.0)
    bystander = asyncio.create_task(answer(generator, None, 500, seed=None))
    with pytest.raises(InvalidArgumentError, match=r"response_format\.\w+ (cannot|takes)") as told:
        await answer(generator, form)
    assert "/" not in told.value.message.partition("cannot be compiled")[2]
    assert (await bystander)[1] == "length"
    monkeypatch.setattr(rehearsal_of(generator), "_try", None)
    with pytest.raises(InvalidArgumentError, match="response_format"):
        await answer(generator, form)


async def test_the_pipeline_is_made_anew_when_forms_have_taken_much(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = generator._engine
    if not isinstance(engine, OpenVinoEngine):
        pytest.skip("the next test is of the other engine")
    monkeypatch.setattr(openvino, "MAX_FORM_BYTES", 1)
    assert (await answer(generator, Form("regex", "ab")))[0] == "ab"
    await until(lambda: engine._form_bytes == 0)
    # Those that it has met before count again.
    made_anew = engine._stepper.give_back
    renewals = []

    async def give_back(*, renew: bool) -> bool:
        renewals.append(renew)
        await made_anew(renew=False)
        return False  # as when a newer conversion has replaced the folder

    monkeypatch.setattr(engine._stepper, "give_back", give_back)
    assert (await answer(generator, Form("regex", "ab")))[0] == "ab"
    assert renewals == [True]


async def test_compiled_forms_are_kept_as_far_as_there_is_room(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = generator._engine
    if isinstance(engine, OpenVinoEngine):
        pytest.skip("the test before is of this engine")
    for text in ("ab", "cd", "ab"):
        assert (await answer(generator, Form("regex", text)))[0] == text
    kept = await engine.compile(Form("regex", "ab"))
    assert await engine.compile(Form("regex", "ab")) is kept
    monkeypatch.setattr(forms, "MAX_FORM_BYTES", 1)
    assert (await answer(generator, Form("regex", "ef")))[0] == "ef"
    assert list(engine._forms._compiled) == [Form("regex", "ef")]
    assert await engine.compile(Form("regex", "ab")) is not kept


async def test_a_form_whose_caller_has_left_is_not_tried(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsal = rehearsal_of(generator)
    tried = []

    async def try_(form: Form) -> tuple[int, str]:
        tried.append(form.text)
        return 1, ""

    monkeypatch.setattr(rehearsal, "_try", try_)
    release = await rehearsal._process._turn.acquire("a")
    leaving, staying = (asyncio.create_task(rehearsal.check(Form("regex", each))) for each in "xy")
    await asyncio.sleep(0)
    leaving.cancel()
    release()
    assert await staying == 1
    assert tried == ["y"]


async def test_the_conversion_writes_the_tokenizer(converted_llama: Path) -> None:
    assert (converted_llama / TOKENIZER).exists()
    assert openvino._knows_forms(converted_llama)
