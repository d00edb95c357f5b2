"""What a template wants as the content of a message: found out, and compared with transformers."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from text_svc.worker.generation.chat_template_process import MAX_KNOWN_SHAPES, Renderer

START = "{% for m in messages %}<{{ m['role'] }}>"
END = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
# Templates of public models, made short: what each makes of a message, and the form it wants.
TEMPLATES = {
    "string": (START + "{{ m.content }}" + END, "string"),
    "trimmed": (START + "{{ m.content | trim }}" + END, "string"),
    "joined": (START + "{{ m.content + '</s>' }}" + END, "string"),
    "json": (START + "{{ m | tojson }}" + END, "string"),
    "parts": (
        START + "{% for part in m['content'] %}{% if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endif %}{% endfor %}" + END,
        "parts",
    ),
    "parts by attribute": (
        START + "{% for p in m.content %}{{ p.text }}{% endfor %}" + END,
        "parts",
    ),
    "first part": (START + "{{ m['content'][0]['text'] }}" + END, "parts"),
    "selected parts": (
        START + "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}"
        "{% endfor %}" + END,
        "parts",
    ),
    "either": (
        START + "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{{ p.text }}{% endfor %}{% endif %}" + END,
        "string",
    ),
}
CONVERSATIONS = {
    "question": [("user", "Grüße, 'you'")],
    "system": [("system", "be brief"), ("user", "a")],
    "turns": [("user", "a"), ("assistant", "b"), ("user", " two \n lines ")],
    "empty": [("user", ""), ("assistant", "what?"), ("user", "snow")],
    "assistant last": [("user", "a"), ("assistant", "well,")],
    "unusual order": [("user", "a"), ("user", "a"), ("system", "s")],
}


def variables(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {"messages": messages, "add_generation_prompt": True}


def with_form(turns: list[tuple[str, str]], form: str) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": text if form == "string" else [{"type": "text", "text": text}]}
        for role, text in turns
    ]


def answer(template: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    messages = with_form(turns, "string")
    return Renderer(template, 10_000).answer(variables(messages) | {"texts": None})


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize(("template", "form"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_gets_the_form_that_it_wants(
    template: str, form: str, turns: list[tuple[str, str]]
) -> None:
    (expected,), _ = render_jinja_template(
        [with_form(turns, form)], chat_template=template, add_generation_prompt=True
    )
    assert answer(template, turns) == {"text": expected}
    assert all(text.strip() in expected for _, text in turns) or "json" in template


@pytest.mark.parametrize("name", sorted({*TEMPLATES} - {"first part"}))
def test_a_model_with_images_gets_strings_only_where_its_template_takes_no_parts(
    name: str,
) -> None:
    template, _ = TEMPLATES[name]
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    request = variables(parts) | {"texts": ["<image>\nwhat?"]}
    text = Renderer(template, 10_000).answer(request)["text"]
    assert "what?" in text
    assert "type" not in text, "no list is written as text"


@pytest.mark.parametrize(
    ("template", "turns", "left_out"),
    [
        ("a template of nothing", [("user", "a")], 0),
        ("{{ messages[0].content }}", [("user", "a"), ("user", "b")], 1),
        ("{{ messages[-1].content }}", [("system", "a"), ("user", "b")], 0),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.text }}{% endif %}{% endfor %}",
         [("assistant", "a"), ("user", "b")], 1),
        # Parts alone, and not all of them.
        ("{% for p in messages[0].content %}{{ p.text }}{% endfor %}",
         [("user", "a"), ("user", "b")], 1),
    ],
)  # fmt: skip
def test_a_text_that_is_left_out_is_an_error(
    template: str, turns: list[tuple[str, str]], left_out: int
) -> None:
    assert answer(template, turns) == {"left_out": left_out}


def test_an_assistant_s_text_may_be_left_out() -> None:
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    assert answer(template, [("user", "a"), ("assistant", "thinking"), ("user", "b")]) == {
        "text": "ab"
    }


def test_the_template_s_own_refusal_is_told() -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert answer(template, [("system", "a"), ("user", "b")]) == {
        "error": "System role not supported"
    }
    assert answer(template, [("user", "b")]) == {"text": "b"}


def test_what_a_text_says_does_not_decide() -> None:
    renderer = Renderer(TEMPLATES["parts"][0], 10_000)
    for text in ("word0end", "'text': 'word0end", "a", "type", "assistant"):
        request = variables([{"role": "user", "content": text}]) | {"texts": None}
        assert renderer.answer(request) == {"text": f"<user>{text}<assistant>"}


def test_what_is_remembered_is_bounded() -> None:
    renderer = Renderer(TEMPLATES["parts"][0], 100_000)
    for size in range(1, MAX_KNOWN_SHAPES + 50):
        messages = [{"role": "user", "content": "a"}] * size
        assert renderer.answer(variables(messages) | {"texts": None})["text"].count("a") == (
            size + 2
        )
    assert len(renderer._known) <= MAX_KNOWN_SHAPES


def test_conversations_that_differ_each_time_do_not_keep_others_from_being_remembered() -> None:
    renderer = Renderer(TEMPLATES["string"][0], 10_000)
    for number in range(MAX_KNOWN_SHAPES + 9):
        message = {"role": "tool", "content": "a", "tool_call_id": f"call-{number}"}
        renderer.answer(variables([message]) | {"texts": None})
    assert len(renderer._known) == MAX_KNOWN_SHAPES
    assert f"call-{number}" in list(renderer._known)[-1]
