"""Calls and tools in chat templates: the form that each wants is found out by what comes out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from text_svc.worker.generation import template_forms
from text_svc.worker.generation.chat_template_process import Renderer

START = (
    "{% for t in tools or [] %}[{{ t | tojson }}]{% endfor %}{% for m in messages %}<{{ m.role }}>"
)
END = "{% endfor %}"
EACH = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
# What templates of public models make of a call, made short, and the form that they want.
TEMPLATES = {
    "object": (
        START
        + "{{ m.content }}"
        + EACH
        + "{{ f.name }} {{ f.arguments | tojson }}{% endfor %}"
        + END,
        "",
    ),
    "text": (
        START + "{{ m.content }}" + EACH + "{{ f.name + ' ' + f.arguments }}{% endfor %}" + END,
        "",
    ),
    "none as content": (
        START + "{% if m.content is none %}" + EACH + "{{ f.name + ' ' + f.arguments }}"
        "{% endfor %}{% else %}{{ m.content }}{% endif %}" + END,
        "",
    ),
    "members": (
        START + "{{ m.content }}" + EACH + "{{ f.name + ' {' }}"
        "{% for k, v in f.arguments.items() %}{{ k | tojson }}: {{ v | tojson }}{% endfor %}"
        "{{ '}' }}{% endfor %}" + END,
        "",
    ),
    "the call as it is": (
        START + "{{ m.content }}" + EACH + "{{ f.name }}{{ f | tojson }}{% endfor %}" + END,
        '{"name": "weather", "arguments": {"city": "Paris"}}',
    ),
}
ARGUMENTS = {"city": "Paris"}
TOOL = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}


def conversation(arguments: Any = None, content: str = "") -> list[dict[str, Any]]:
    function = {"name": "weather", "arguments": ARGUMENTS if arguments is None else arguments}
    call = {"id": "1", "type": "function", "function": function}
    return [
        {"role": "user", "content": "how is it?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1", "name": "weather"},
    ]


def answer(template: str, messages: list[dict[str, Any]], **variables: Any) -> dict[str, Any]:
    request = {"messages": messages, "tools": None, "texts": None, **variables}
    return Renderer(template, 10_000).answer(request)


@pytest.mark.parametrize(("template", "call"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_gets_calls_in_the_form_that_it_wants(template: str, call: str) -> None:
    call = call or 'weather {"city": "Paris"}'
    start, _, rest = answer(template, conversation())["text"].partition("<assistant>")
    assert start == "<user>how is it?"
    assert rest.removeprefix("weather" if call.startswith("{") else "") == f"{call}<tool>sunny"


@pytest.mark.parametrize("name", ["object", "members", "text"])
def test_content_beside_calls_comes_out(name: str) -> None:
    template, _ = TEMPLATES[name]
    assert "I look.weather {" in answer(template, conversation(content="I look."))["text"]


def test_arguments_that_are_no_object_stay_text() -> None:
    template, _ = TEMPLATES["text"]
    assert "weather {broken<tool>" in answer(template, conversation("{broken"))["text"]


def test_a_template_may_leave_out_calls_but_no_result() -> None:
    template = START + "{{ m.content }}" + END
    assert answer(template, conversation())["text"] == "<user>how is it?<assistant><tool>sunny"
    without = "{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}"
    assert answer(without, conversation()) == {"left_out": 2}


def test_tools_come_out_or_are_told() -> None:
    template, _ = TEMPLATES["object"]
    messages = conversation()[:1]
    expected = f"[{json.dumps(TOOL)}]<user>how is it?"
    assert answer(template, messages, tools=[TOOL])["text"] == expected
    renderer = Renderer("{{ messages[0].content }}", 1000)
    for _ in range(2):  # found out, and remembered
        request = {"messages": messages, "tools": [TOOL], "texts": None}
        assert renderer.answer(request) == {"no_tools": True}
    assert renderer.answer({"messages": messages, "texts": None}) == {"text": "how is it?"}


@pytest.mark.parametrize(
    ("template", "yes", "no"),
    [
        ("{% if enable_thinking is defined and not enable_thinking %}-{% endif %}+", "+", "-+"),
        ("{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ thinking }}",
         "True", "False"),
        ("{{ enable_thinking }}{{ thinking }}", "TrueTrue", "FalseFalse"),
    ],
)  # fmt: skip
def test_the_switch_of_reasoning(template: str, yes: str, no: str) -> None:
    template += "{{ messages[0].content }}"
    messages = [{"role": "user", "content": "?"}]
    assert answer(template, messages, think=True) == {"text": yes + "?"}
    assert answer(template, messages, think=False) == {"text": no + "?"}


def test_a_template_without_a_switch_says_so() -> None:
    messages = [{"role": "user", "content": "?"}]
    for template in ("thinking {{ messages[0].thinking }}", "{% broken"):
        assert answer(template, messages, think=False) == {"no_switch": True}


def test_a_tool_that_breaks_the_template_is_told() -> None:
    deep: dict[str, Any] = {}
    for _ in range(50):
        deep = {"properties": deep}
    template = (
        "{% macro walk(s) %}{% if s.properties %}{{ walk(s.properties) }}{{ walk(s.properties) }}"
        "{% endif %}x{% endmacro %}{% for t in tools %}{{ t.function.name }}"
        "{{ walk(t.function.parameters) if t.function.parameters.deep }}{% endfor %}"
        "{{ messages[0].content }}"
    )
    tool = {"type": "function", "function": {"name": "a", "parameters": {"deep": True}}}
    messages = [{"role": "user", "content": "?"}]
    assert answer(template, messages, tools=[tool]) == {"text": "ax?"}
    recursive = template.replace("walk(s.properties) }}{{ walk(s.properties)", "walk(s)")
    tool["function"]["parameters"] = {"deep": True, "properties": deep}  # type: ignore[index]
    assert "recursion" in answer(recursive, messages, tools=[tool])["error"]


def test_forms_of_a_conversation_without_calls_are_two() -> None:
    messages = [{"role": "user", "content": "a"}]
    assert template_forms.forms(messages, None) == [
        messages,
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
    ]
    assert len(template_forms.forms(conversation(), None)) == 8
