"""Answers that are forced to have calls: whatever a model chooses, they are read as such calls."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from time import process_time
from typing import Any

import pytest

from ml import transformers_pb2 as pb
from shared.errors import FailedPreconditionError, InputTooLargeError, InvalidArgumentError
from tests.unit.text.worker.answers.support import Joined, read
from text_svc.worker.answers.answer import AnswerForm
from text_svc.worker.answers.formats import MARKS, NAMES, named
from text_svc.worker.answers.reasoning import ReasoningMarks
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.torch_batch.forms import FormCompiler, FormMask, Vocabulary
from text_svc.worker.generation.forced_calls import required_calls, strict_calls
from text_svc.worker.generation.tools import ToolRequest, read_tools

# What a model has: characters, and what ends a text in one of the formats, so that chance ends it.
TEXTS = [chr(code) for code in range(32, 127)] + [
    "\n",
    "｜",
    "▁",
    *MARKS,
    "</parameter>",
    "</arg_value>",
]
END = len(TEXTS)
VOCABULARY = Vocabulary([text.encode().decode("latin-1") for text in [*TEXTS, ""]], {}, [END])
TEMPLATES = {
    "mistral": ["", "[TOOL_CALLS] [", "[ARGS]"],
    "phi4": ["<|tool_call|><|/tool_call|>", "<|tool_call|>", "functools["],
    "deepseek": ["", "```json"],
}
THINK = ReasoningMarks("<think>", "</think>")
SCHEMA = {
    "type": "object",
    "properties": {
        "note": {"type": "string"},
        "city": {"type": "string", "pattern": "^[a-z]{2,4}$"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["C", "F"]},
        "short": {"type": "string", "maxLength": 3},
        "more": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = pb.Tool(name="weather", parameters=json.dumps(SCHEMA), strict=True)
TIME = pb.Tool(name="time.now", parameters='{"type": "object", "properties": {"z": {}}}')
# It cannot be enforced.
LOOSE = {"type": "object", "properties": {"a": {"type": "string"}}, "minProperties": 1}


def tools(*given: pb.Tool, **fields: Any) -> ToolRequest:
    request = read_tools(pb.ChatRequest(tools=given or (WEATHER, TIME), **fields))
    assert request is not None
    return request


@pytest.fixture(scope="module")
def compiler() -> FormCompiler:
    return FormCompiler(VOCABULARY)


def by_chance(compiler: FormCompiler, form: Form, seed: int, most: int = 4000) -> tuple[str, bool]:
    """A text of the form, and whether it has ended."""
    mask = FormMask(compiler.compile(form.kind, form.text))
    chance, text = random.Random(seed), ""
    for _ in range(most):
        allowed = mask.allowed().nonzero()[:, 0].tolist()
        # Else it would mostly be blanks between the parts of JSON.
        solid = [token for token in allowed if token < END and TEXTS[token].strip()]
        token = chance.choice(solid if solid and END not in allowed else allowed)
        if token == END or (END in allowed and chance.random() < 0.3):
            return text, True
        assert mask.accept(token)
        text += TEXTS[token]
    return text, False


def is_weather(arguments: dict[str, Any]) -> bool:
    city, days = arguments["city"], arguments["days"]
    return (
        arguments.keys() <= SCHEMA["properties"].keys()  # type: ignore[attr-defined]
        and 2 <= len(city) <= 4
        and 1 <= days <= 9
        and arguments.get("unit", "C") in ("C", "F")
        and len(arguments.get("short", "")) <= 3
        and isinstance(arguments.get("more", {"a": True})["a"], bool)
    )


def check(joined: Joined, names: Sequence[str]) -> None:
    assert {name for name, _ in joined.calls} <= {*names}
    for name, arguments in joined.parsed:
        assert isinstance(arguments, dict)
        assert name != "weather" or is_weather(arguments), arguments


@pytest.mark.parametrize("name", NAMES)
def test_required_calls_are_read_as_calls(compiler: FormCompiler, name: str) -> None:
    request = tools(tool_choice="required")
    form = AnswerForm(request.tools, named(name), parallel=True)
    numbers = set()
    for template in TEMPLATES.get(name, [""]):
        wanted = required_calls(named(name).syntax(template), request)
        for seed in range(4):
            text, ended = by_chance(compiler, wanted, seed)
            joined = read(form, [text])
            assert joined.content == "", text
            if ended:
                check(joined, ["weather", "time.now"])
                numbers.add(len(joined.calls))
    assert 0 not in numbers
    assert numbers, "some have ended"


def test_several_calls_or_one(compiler: FormCompiler) -> None:
    syntax = named("hermes").syntax("")

    def number(**fields: Any) -> set[int]:
        request = tools(TIME, pb.Tool(name="other"), **fields)
        form = AnswerForm(request.tools, named("hermes"))
        wanted = required_calls(syntax, request)
        texts = [by_chance(compiler, wanted, seed) for seed in range(12)]
        joined = [read(form, [text]) for text, ended in texts if ended]
        names = {name for each in joined for name, _ in each.calls}
        assert names == ({"other"} if request.named else {"time.now", "other"})
        return {len(each.calls) for each in joined}

    assert max(number(tool_choice="required")) > 1
    assert number(tool_choice="required", parallel_tool_calls=False) == {1}
    assert number(tool_name="other") == {1}


@pytest.mark.parametrize("opened", [False, True])
def test_a_model_may_reason_before_it_calls(compiler: FormCompiler, opened: bool) -> None:
    request = tools(TIME, tool_name="time.now")
    wanted = required_calls(named("hermes").syntax(""), request, THINK, opened=opened)
    form = AnswerForm(request.tools, named("hermes"), reasoning=THINK, separate=True)
    reasoned = set()
    for seed in range(8):
        text, ended = by_chance(compiler, wanted, seed)
        joined = read(form, [text], "<think>" if opened else "")
        assert joined.content == ""
        if ended:
            assert len(joined.calls) == 1, text
        reasoned.add(bool(joined.reasoning))
    assert True in reasoned
    assert opened or len(reasoned) == 2


@pytest.mark.parametrize("name", [name for name in NAMES if name != "llama3"])
def test_strict_calls_fit_where_the_model_decides(compiler: FormCompiler, name: str) -> None:
    request = tools()
    form = AnswerForm(request.tools, named(name))
    for template in TEMPLATES.get(name, [""]):
        syntax = named(name).syntax(template)
        wanted = strict_calls(syntax, request)
        mask = FormMask(compiler.compile(wanted.kind, wanted.text))
        assert mask.allowed()[END], "it may be empty"
        calls = 0
        for seed in range(3):
            # Chance alone rarely finds the beginning of a call.
            text, _ = by_chance(compiler, wanted, seed, 800)
            mask = FormMask(compiler.compile(wanted.kind, wanted.text))
            begun = "One. " + syntax.triggers[0]
            rest, ended = _go_on(mask, begun, seed)
            joined = read(form, [begun + rest])
            assert joined.content.startswith("One. ")
            calls += ended and len(joined.calls) > 0
            if ended:
                check(joined, ["weather", "time.now"])
            check(read(form, [text.rpartition(syntax.triggers[0])[0]]), ["weather", "time.now"])
        assert calls


def _go_on(mask: FormMask, begun: str, seed: int) -> tuple[str, bool]:
    """Forces the beginning, and leaves the rest to chance until a call may end the text."""
    for char in begun:
        assert mask.accept(TEXTS.index(char)), begun
    chance, text = random.Random(seed), ""
    for _ in range(4000):
        allowed = mask.allowed().nonzero()[:, 0].tolist()
        if END in allowed:
            return text, True
        solid = [token for token in allowed if TEXTS[token].strip()]
        token = chance.choice(solid or allowed)
        mask.accept(token)
        text += TEXTS[token]
    return text, False


@pytest.mark.parametrize("name", ["hermes", "qwen3-coder", "gemma4"])
def test_what_cannot_be_enforced_is_refused_of_strict_tools_alone(
    compiler: FormCompiler, name: str
) -> None:
    syntax = named(name).syntax("")
    loose = {"name": "loose", "parameters": json.dumps(LOOSE)}
    with pytest.raises(InvalidArgumentError, match="has minProperties, which is not") as caught:
        required_calls(syntax, tools(TIME, pb.Tool(**loose, strict=True), tool_choice="required"))
    assert caught.value.field == "tools[1].parameters"
    for parameters in (
        loose["parameters"],
        '{"type": ["object", "null"]}',
        '{"$ref": "#/$defs/a"}',
    ):
        request = tools(pb.Tool(name="loose", parameters=parameters), tool_choice="required")
        form = AnswerForm(request.tools, named(name))
        wanted = required_calls(syntax, request)
        texts = [by_chance(compiler, wanted, seed) for seed in range(3)]
        assert any(len(read(form, [text]).calls) for text, ended in texts if ended)
    with pytest.raises(InvalidArgumentError, match="type must be object in a strict tool"):
        required_calls(
            syntax,
            tools(pb.Tool(name="a", parameters='{"type": "null"}', strict=True), tool_name="a"),
        )


def test_strict_calls_need_a_mark() -> None:
    with pytest.raises(FailedPreconditionError, match="has no mark that they begin with"):
        strict_calls(named("llama3").syntax(""), tools())


def test_names_that_a_format_cannot_write_are_refused() -> None:
    parameters = json.dumps({"type": "object", "properties": {"a:b<": {"type": "string"}}})
    request = tools(pb.Tool(name="a", parameters=parameters), tool_name="a")
    assert required_calls(named("hermes").syntax(""), request)
    with pytest.raises(InvalidArgumentError, match="'a:b<', whose name cannot be written"):
        required_calls(named("gemma4").syntax(""), request)


def optional(number: int, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{index}": schema for index in range(number)}}


def test_optional_arguments_come_in_their_order_or_not(compiler: FormCompiler) -> None:
    names = [f"p{index}" for index in range(5)]
    parameters = optional(5, {"type": "integer"}) | {"additionalProperties": False}
    request = tools(pb.Tool(name="a", parameters=json.dumps(parameters)), tool_name="a")
    wanted = required_calls(named("gemma4").syntax(""), request)
    compiled = compiler.compile(wanted.kind, wanted.text)
    for chosen in range(2 ** len(names)):
        given = [name for index, name in enumerate(names) if chosen >> index & 1]
        assert _accepts(compiled, given), given
        assert len(given) < 2 or not _accepts(compiled, given[::-1]), given


def _accepts(compiled: Any, given: Sequence[str]) -> bool:
    mask = FormMask(compiled)
    arguments = ",".join(f"{name}:7" for name in given)
    text = f"<|tool_call>call:a{{{arguments}}}<tool_call|>"
    return all(mask.accept(TEXTS.index(char)) for char in text) and bool(mask.allowed()[END])


def refused() -> AbstractContextManager[Any]:
    return pytest.raises(InputTooLargeError, match=r"(tools has|one, have) more than \d+ char")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("number", "schema", "definitions"),
    [
        (2000, {"type": "integer"}, 0),
        (1000, {"type": "string", "enum": ["a", "b"]}, 0),
        (60, {"$ref": "#/$defs/d1"}, 1500),
        (60, {"$ref": "#/properties/p0"}, 1500),
    ],
)
def test_what_would_take_too_much_is_refused_before_it_is_built(
    name: str, number: int, schema: dict[str, Any], definitions: int
) -> None:
    defs = {f"d{index}": {"type": "integer"} for index in range(definitions)}
    parameters = json.dumps(optional(number, schema) | {"$defs": defs})
    request = tools(pb.Tool(name="a", parameters=parameters), tool_choice="required")
    begun = process_time()
    # JSON has room for each of these.
    with nullcontext() if named(name).syntax("").members is None else refused():
        required_calls(named(name).syntax(""), request)
    assert process_time() - begun < 1


def test_many_tools_are_refused_once_they_take_too_much() -> None:
    parameters = json.dumps(optional(90, {"type": "integer"}))
    request = tools(
        *(pb.Tool(name=f"t{index}", parameters=parameters) for index in range(128)),
        tool_choice="required",
    )
    begun = process_time()
    for name in NAMES:
        with pytest.raises(InputTooLargeError, match="the form of the calls of tools has more"):
            required_calls(named(name).syntax(""), request)
    assert process_time() - begun < 2


@pytest.mark.parametrize("name", NAMES)
def test_tools_as_people_write_them_are_not_too_large(name: str) -> None:
    described = {"type": "string", "description": "what it is for, in a sentence or two " * 2}
    parameters = json.dumps(optional(50, described))
    request = tools(pb.Tool(name="search", parameters=parameters), tool_choice="required")
    required_calls(named(name).syntax(""), request).check()


# What callers send as the schema of a property, or as a part of it.
ODD: tuple[Any, ...] = (
    *({}, [], None, True, 5, 1.5, "", "a", "string", ["a"], [None], [[]], [{}], {"a": []}),
    *({"type": "string", "enum": ["x", None]}, {"type": "string", "enum": [None]}),
    *({"type": "string", "const": 5}, {"type": "string", "const": None}, {"enum": "ab"}),
    *({"type": "string", "enum": {"a": 1}}, {"type": "string", "enum": []}, {"enum": ["", "a"]}),
    *({"type": "string", "minLength": "a"}, {"type": "string", "pattern": []}),
    *({"$ref": 5}, {"$ref": "#/$defs/a"}, {"type": ["string", None]}, {"type": {}}),
)
KEYWORDS = ("properties", "required", "additionalProperties", "$defs", "definitions", "anyOf")
OF_PROPERTIES = ("type", "enum", "const", "$ref", "pattern", "maxLength", "items", "format")


def odd_schema(chance: random.Random) -> dict[str, Any]:
    inner = {"type": chance.choice(["string", "integer", None])} | {
        chance.choice(OF_PROPERTIES): chance.choice(ODD) for _ in range(chance.randrange(3))
    }
    schema = {"type": "object", "properties": {"a": inner, "b": chance.choice(ODD)}}
    return schema | {
        chance.choice(KEYWORDS): chance.choice(ODD) for _ in range(chance.randrange(3))
    }


@pytest.mark.parametrize("name", NAMES)
def test_odd_schemas_have_a_form_or_are_refused(name: str) -> None:
    chance = random.Random(name)
    schemas = [{"type": "object", "properties": {"a": each}} for each in ODD]
    schemas += [{"type": "object", keyword: each} for keyword in KEYWORDS for each in ODD]
    schemas += [odd_schema(chance) for _ in range(300)]
    syntax = named(name).syntax("")
    for schema in schemas:
        for strict in (False, True):
            tool = pb.Tool(name="a", parameters=json.dumps(schema), strict=strict)
            request = tools(tool, tool_choice="required")
            with suppress(InvalidArgumentError) if strict else nullcontext():
                required_calls(syntax, request).check()


@pytest.mark.parametrize("name", ["gemma4", "qwen3-coder"])
def test_a_choice_of_a_text_is_one_of_its_texts(compiler: FormCompiler, name: str) -> None:
    syntax = named(name).syntax("")

    def form(schema: dict[str, Any]) -> Form:
        parameters = json.dumps(optional(1, {"type": "string"} | schema) | {"required": ["p0"]})
        tool = pb.Tool(name="a", parameters=parameters, strict=True)
        return required_calls(syntax, tools(tool, tool_name="a"))

    read_as = AnswerForm(tools(pb.Tool(name="a")).tools, named(name))
    for schema in ({"enum": ["xy", None]}, {"const": "xy"}):
        text, ended = by_chance(compiler, form(schema), 0)
        assert ended
        assert "xy" in read(read_as, [text]).calls[0][1]
    for schema in ({"enum": [None]}, {"const": 5}):
        with pytest.raises(InvalidArgumentError, match="rule of its text that cannot be enforced"):
            form(schema)
