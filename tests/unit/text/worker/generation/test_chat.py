"""ChatCompletion with tools and reasoning: from requests to prompts, from answers to deltas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from tokenizers import AddedToken, Tokenizer

from ml import transformers_pb2 as pb
from shared.errors import FailedPreconditionError, InputTooLargeError, InvalidArgumentError
from tests.support import tiny_text
from tests.support.text_pipeline import spec_of
from text_svc.options import LoadOptions
from text_svc.worker.answers.formats import NAMES
from text_svc.worker.engines.base import Generation, Limits, StepOutput
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import SamplingDefaults
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.generation.service import GenerationHandlers
from text_svc.worker.generation.tools import MAX_SCHEMA_DEPTH, MAX_TOOLS
from text_svc.worker.tokenizers.fast import FastTokenizer

SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}}'
WEATHER = pb.Tool(name="weather", description="The weather.", parameters=SCHEMA)
USER = pb.ChatMessage(role="user", content="the sea?")
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
MISTRAL = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}"
    "{{ m.content }}{{ m.tool_call_id }}{% for c in m.tool_calls or [] %}[TOOL_CALLS]"
    "{{ c.function | tojson }}{{ c.id }}{% endfor %}{% endfor %}"
)


class Engine:
    """An engine that writes a text, a token at a time."""

    def __init__(self, tokens: Sequence[int], features: Iterable[str] = ()) -> None:
        self.limits = Limits(context=1000, running=1, waiting=1, features=frozenset(features))
        self.forms: list[Form] = []
        self.prompts: list[list[int]] = []
        self.cancelled = 0
        self._tokens = tokens

    async def compile(self, form: Form) -> None:
        self.forms.append(form)

    def submit(self, generation: Generation) -> None:
        self.prompts.append(generation.prompt)
        self._writing = asyncio.ensure_future(self._write(generation))

    async def _write(self, generation: Generation) -> None:
        for token in self._tokens:
            generation.put(StepOutput((token,), 1))
            await asyncio.sleep(0)
        generation.put(StepOutput((), 1, "stop"))

    def cancel(self, generation: Generation) -> None:
        self.cancelled += 1

    async def close(self) -> None:
        """It has no threads."""


class Model:
    """The handlers of a model that always writes the same."""

    def __init__(
        self,
        folder: Path,
        answer: str,
        template: str,
        special: Sequence[str],
        features: Iterable[str] = (),
        **options: str,
    ) -> None:
        tiny_text.save_tokenizer(folder, template)
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.add_special_tokens([AddedToken(each, special=True) for each in special])
        backend.save(str(folder / "tokenizer.json"))
        self.tokenizer = FastTokenizer(folder)
        self.engine = Engine(backend.encode(answer).ids, features)
        engine: Any = self.engine
        self.generator = TextGenerator(
            engine, self.tokenizer, SamplingDefaults(), EngineMetrics("tiny"), 10_000
        )
        spec = spec_of(folder, "text-generation", options, max_prompt_bytes=10_000)
        self.handlers = GenerationHandlers(self.generator, spec)

    async def chat(self, *messages: pb.ChatMessage, **fields: Any) -> list[pb.ChatResponse]:
        request = pb.ChatRequest(messages=messages or [USER], **fields)
        return [response async for response in self.handlers.chat_completion(request)]

    @property
    def prompt(self) -> str:
        text: str = self.tokenizer.backend.decode(
            self.engine.prompts[-1], skip_special_tokens=False
        )
        return text


Make = Callable[..., Model]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Model] = []

    def make(
        answer: str,
        template: str = tiny_text.TOOLS_TEMPLATE,
        special: Sequence[str] = (),
        features: Iterable[str] = (),
        **options: str,
    ) -> Model:
        folder = tmp_path / str(len(made))
        made.append(Model(folder, answer, template, special, features, **options))
        return made[-1]

    yield make
    for model in made:
        await model.generator.close()


def calls_of(responses: Sequence[pb.ChatResponse]) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    for response in responses:
        for delta in response.tool_calls:
            if delta.name:
                assert delta.id
                assert delta.index == len(calls)
                calls.append((delta.name, ""))
            name, arguments = calls[delta.index]
            calls[delta.index] = name, arguments + delta.arguments
    return calls


def content_of(responses: Sequence[pb.ChatResponse]) -> str:
    return "".join(response.content for response in responses)


async def test_calls_are_deltas_and_the_reason_says_so(make: Make) -> None:
    model = make("One moment.\n" + CALL + "\n" + CALL)
    responses = await model.chat(tools=[WEATHER])
    assert content_of(responses) == "One moment.\n"
    assert calls_of(responses) == [("weather", '{"city": "Paris"}')] * 2
    assert sum(bool(response.tool_calls) for response in responses) > 4, "they come in pieces"
    last = responses[-1]
    assert (last.done, last.finish_reason, last.content) == (True, "tool_calls", "")
    assert last.usage.generated_tokens > 40
    assert '<system>{"type": "function", "function": {"name": "weather"' in model.prompt


async def test_an_answer_without_calls_stops_as_ever(make: Make) -> None:
    responses = await make("the sea < the sky").chat(tools=[WEATHER])
    assert (content_of(responses), calls_of(responses)) == ("the sea < the sky", [])
    assert responses[-1].finish_reason == "stop"


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
async def test_without_tools_everything_is_content(make: Make, fields: dict[str, Any]) -> None:
    model = make(CALL)
    responses = await model.chat(**fields)
    assert (content_of(responses), calls_of(responses)) == (CALL, [])
    assert model.prompt == "<user>the sea?<assistant>"


async def test_without_parallel_calls_the_answer_ends_after_one(make: Make) -> None:
    model = make(CALL + CALL)
    responses = await model.chat(tools=[WEATHER], parallel_tool_calls=False)
    assert len(calls_of(responses)) == 1
    last = responses[-1]
    assert last.finish_reason == "tool_calls"
    assert last.usage.generated_tokens < len(model.engine._tokens)
    assert model.engine.cancelled == 1


async def test_marks_that_are_special_tokens_are_seen(make: Make) -> None:
    special = ["[TOOL_CALLS]", "[ARGS]", "[OTHER]"]
    model = make('é[OTHER][TOOL_CALLS]weather[ARGS]{"city": "雪"}', MISTRAL, special)
    responses = await model.chat(tools=[WEATHER])
    assert calls_of(responses) == [("weather", '{"city": "雪"}')]
    assert content_of(responses) == "é", "other special tokens leave no text"
    (call_id,) = [d.id for r in responses for d in r.tool_calls if d.id]
    assert len(call_id) == 9
    assert content_of(await model.chat()) == 'éweather{"city": "雪"}', "as ever"


async def test_results_go_back_into_the_template(make: Make) -> None:
    model = make("sun")
    call = pb.ToolCall(id="call_1", name="weather", arguments='{"city": "Paris"}')
    await model.chat(
        pb.ChatMessage(role="developer", content="be brief"),
        USER,
        pb.ChatMessage(role="assistant", tool_calls=[call]),
        pb.ChatMessage(role="tool", tool_call_id="call_1", content="sunny"),
        tools=[WEATHER],
    )
    assert model.prompt.endswith(
        "</tool_call><system>be brief<user>the sea?<assistant><tool_call>"
        '{"name": "weather", "arguments": {"city": "Paris"}}</tool_call><tool>sunny<assistant>'
    )


async def test_ids_become_what_the_template_takes(make: Make) -> None:
    model = make("sun", MISTRAL)
    for given in ("call_1", "abcdefghi"):
        call = pb.ToolCall(id=given, name="weather")
        await model.chat(
            USER,
            pb.ChatMessage(role="assistant", tool_calls=[call]),
            pb.ChatMessage(role="tool", tool_call_id=given, content="sunny"),
        )
        _, _, rest = model.prompt.partition('"arguments": {}}')
        used, _, other = rest.partition("sunny")
        assert used == other
        assert len(used) == 9
        assert used.isalnum()
        assert given != "abcdefghi" or used == given


async def test_reasoning_is_apart_if_asked(make: Make) -> None:
    template = tiny_text.TOOLS_TEMPLATE + "{# </think> #}"
    model = make("<think>\nthe sea\n</think>\n\nthe sky", template)
    responses = await model.chat(separate_reasoning=True)
    assert "".join(response.reasoning for response in responses) == "the sea"
    assert content_of(responses) == "the sky"
    usage = responses[-1].usage
    assert 0 < usage.reasoning_tokens < usage.generated_tokens
    responses = await model.chat()
    assert content_of(responses) == "<think>\nthe sea\n</think>\n\nthe sky"
    assert responses[-1].usage.reasoning_tokens == 0


async def test_reasoning_that_the_prompt_opens(make: Make) -> None:
    model = make("the sea</think>the sky")
    responses = await model.chat(separate_reasoning=True, think=True)
    assert model.prompt.endswith("<assistant><think>")
    assert "".join(response.reasoning for response in responses) == "the sea"
    assert content_of(responses) == "the sky"
    await model.chat(think=False)
    assert model.prompt.endswith("<assistant>")


async def test_reasoning_of_earlier_answers_goes_to_templates_that_take_it(make: Make) -> None:
    template = (
        "{% for m in messages %}{{ m.reasoning_content }}:{{ m.content }}{{ m['thinking'] }}"
        "{% endfor %}"
    )
    earlier = pb.ChatMessage(role="assistant", content="sky", reasoning="sea")
    model = make("x", template)
    await model.chat(USER, earlier)
    assert model.prompt == ":the sea?sea:skysea"
    model = make("x", tiny_text.CHAT_TEMPLATE)
    await model.chat(USER, earlier)
    assert model.prompt == "<user>the sea?<assistant>sky<assistant>"


async def test_what_cannot_be_done_is_told_at_the_call(make: Make) -> None:
    plain = make("x", tiny_text.CHAT_TEMPLATE)
    with pytest.raises(FailedPreconditionError, match=r"not known.*hermes.*tool_format"):
        await plain.chat(tools=[WEATHER])
    with pytest.raises(FailedPreconditionError, match="no switch of reasoning"):
        await plain.chat(think=True)
    chosen = make("x", tiny_text.CHAT_TEMPLATE, tool_format="hermes")
    with pytest.raises(FailedPreconditionError, match="takes no tools"):
        await chosen.chat(tools=[WEATHER])
    assert content_of(await chosen.chat()) == "x"
    forced = make("x")
    strict = pb.Tool(name="weather", parameters=SCHEMA, strict=True)
    for fields in (
        {"tools": [WEATHER], "tool_choice": "required"},
        {"tools": [WEATHER], "tool_name": "weather"},
        {"tools": [strict]},
    ):
        with pytest.raises(FailedPreconditionError, match="cannot force a call"):
            await forced.chat(**fields)
    assert content_of(await forced.chat(tools=[strict], tool_choice="none")) == "x"


async def test_calls_are_forced_where_the_engine_can(make: Make) -> None:
    """The form goes to the engine, and what it writes is taken apart as ever."""
    model = make(CALL, features={"response_format"})
    fields: dict[str, Any] = {"tools": [WEATHER], "stop": ["x"]}
    responses = await model.chat(tool_choice="required", **fields)
    assert calls_of(responses) == [("weather", '{"city": "Paris"}')]
    assert responses[-1].finish_reason == "tool_calls"
    (form,) = model.engine.forms
    structure = json.loads(form.text)["format"]
    assert (form.kind, structure["type"]) == ("calls", "or"), "it may reason before"
    await model.chat(tool_name="weather", think=True, **fields)
    structure = json.loads(model.engine.forms[-1].text)["format"]
    assert structure["elements"][0]["end"] == "</think>", "the prompt has opened it"
    strict = pb.Tool(name="weather", parameters=SCHEMA, strict=True)
    await model.chat(tools=[strict])
    structure = json.loads(model.engine.forms[-1].text)["format"]
    assert structure["type"] == "triggered_tags"
    await model.chat(tools=[WEATHER])
    assert len(model.engine.forms) == 3, "the model decides"
    for name in ("ignore_eos", "min_tokens"):
        with pytest.raises(InvalidArgumentError, match="calls that are forced say where"):
            await model.chat(tool_choice="required", **{name: 1}, **fields)


TOO_DEEP = '{"a": ' + "[" * MAX_SCHEMA_DEPTH + "]" * MAX_SCHEMA_DEPTH + "}"
BAD = {
    "choice": ({"tool_choice": "any"}, r"must be one of auto, none, required", "tool_choice"),
    "name": ({"tools": [pb.Tool(name="a b")]}, r"tools\[0\].name is 'a b'", "tools[0].name"),
    "no name": ({"tools": [pb.Tool()]}, r"tools\[0\].name is ''", "tools[0].name"),
    "twice": ({"tools": [WEATHER, WEATHER]}, r"as of another tool", "tools[1].name"),
    "many": ({"tools": [pb.Tool(name="a")] * (MAX_TOOLS + 1)}, "the limit is 128", "tools"),
    "no JSON": (
        {"tools": [pb.Tool(name="a", parameters="{")]}, "not valid JSON", "tools[0].parameters",
    ),
    "no object": (
        {"tools": [pb.Tool(name="a", parameters="[]")]}, "a JSON object", "tools[0].parameters",
    ),
    "deep": (
        {"tools": [pb.Tool(name="a", parameters=TOO_DEEP)]}, "65 levels", "tools[0].parameters",
    ),
    "very deep": (
        {"tools": [pb.Tool(name="a", parameters="[" * 9000)]}, "not valid", "tools[0].parameters",
    ),
    "required of none": ({"tool_choice": "required"}, "tools is empty", "tools"),
    "unknown": ({"tools": [WEATHER], "tool_name": "x"}, "must be one of weather", "tool_name"),
    "both": (
        {"tools": [WEATHER], "tool_name": "weather", "tool_choice": "auto"},
        "must be empty or 'required'",
        "tool_name",
    ),
    "calls of a user": (
        {"messages": [pb.ChatMessage(role="user", tool_calls=[pb.ToolCall(name="a")])]},
        "only messages of role 'assistant'",
        "messages[0].tool_calls",
    ),
    "id of a user": (
        {"messages": [pb.ChatMessage(role="user", tool_call_id="1")]},
        "only messages of role 'tool'",
        "messages[0].tool_call_id",
    ),
    "call without a name": (
        {"messages": [pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall()])]},
        r"tool_calls\[0\].name is ''",
        "messages[0].tool_calls[0].name",
    ),
    "many calls": (
        {"messages": [pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(name="a")] * 129)]},
        "129 calls; the limit is 128",
        "messages[0].tool_calls",
    ),
    "role": (
        {"messages": [pb.ChatMessage(role="robot")]},
        "must be one of system, developer, user, assistant, tool",
        "messages[0].role",
    ),
}  # fmt: skip


async def test_bad_requests_are_refused(make: Make) -> None:
    model = make("x")
    for fields, said, field in BAD.values():
        request = pb.ChatRequest(**{"messages": [USER], **fields})
        with pytest.raises(InvalidArgumentError, match=said) as error:
            await anext(model.handlers.chat_completion(request))
        assert error.value.field == field
    big = pb.Tool(name="a", parameters=json.dumps({"description": "x" * 10_000}))
    with pytest.raises(InputTooLargeError, match="limit is 10000"):
        await model.chat(tools=[big])
    assert model.engine.prompts == []


def test_the_load_option_has_all_formats() -> None:
    accepted = get_args(LoadOptions.model_fields["tool_format"].annotation)
    assert accepted == ("auto", *NAMES)
