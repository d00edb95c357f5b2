"""Which format of calls a model has: its chat template says so."""

from __future__ import annotations

import pytest

from text_svc.worker.answers.formats import NAMES, named, of_template
from text_svc.worker.answers.reasoning import marks_of

# What templates of public models write for a call, made short.
TEMPLATES = {
    "hermes": "<tool_call>\n{{ {'name': call.name, 'arguments': call.arguments} | tojson }}",
    "llama3": 'Respond in the format {"name": function name, "parameters": dictionary of argument',
    "mistral": "{{ '[TOOL_CALLS][' + call | tojson }}",
    "phi4": "<|tool|>{{ tools }}<|/tool|> respond in this format: <|tool_call|>",
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    "gemma4": "<|tool_call>call:{{ call.name }}{<tool_call|>",
    "functiongemma": "<start_function_call>call:{{ call.name }}<end_function_call>",
    "qwen3-coder": "<tool_call>\n<function={{ call.name }}>",
    "glm4": "<tool_call>{{ call.name }}\n<arg_key>{{ key }}</arg_key>",
}
OTHERS = [
    "{{ messages[0].content }}",
    "<tool_calls>[{{ call }}]</tool_calls> each in <tool_call>",
    '<minimax:tool_call><invoke name="f">',
    "<|tool_call_start|>[f(a='b')]<|tool_call_end|>",
    "<function=f>{}</function> or <|python_tag|>",
    "<seed:tool_call>",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_template_has_a_format(name: str) -> None:
    assert of_template(TEMPLATES[name]) is named(name)


@pytest.mark.parametrize("template", OTHERS)
def test_other_templates_have_none(template: str) -> None:
    assert of_template(template) is None


def test_reasoning_has_the_marks_of_the_template_or_of_the_vocabulary() -> None:
    def marks(template: str, *tokens: str) -> str | None:
        found = marks_of(template, lambda token: token in tokens)
        return found and found.begin

    assert marks("{{ content.split('</think>')[-1] }}") == "<think>"
    assert marks("", "[THINK]", "[/THINK]") == "[THINK]"
    assert marks("", "[THINK]") is None
    assert marks("<|channel>thought\n<channel|>", "<think>", "</think>") == "<|channel>thought"
