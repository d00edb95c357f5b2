"""Calls are the same however the text of an answer is cut, and all other text is content."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.text.worker.answers.cases import CASES, Case
from tests.unit.text.worker.answers.support import form, read
from text_svc.worker.answers.answer import Answer
from text_svc.worker.answers.formats import NAMES, named
from text_svc.worker.answers.pieces import MAX_CALLS
from text_svc.worker.answers.text_input import MAX_HELD_CHARACTERS

CALL = '<tool_call>{"name": "time"}</tool_call>'


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.format}: {case.text[:60]!r}")
def test_an_answer_has_these_parts_whole_and_by_characters(case: Case) -> None:
    for texts in ([case.text], list(case.text)):
        joined = read(form(case.format), texts)
        assert joined.content == case.content
        assert tuple(joined.calls) == case.calls


@pytest.mark.parametrize("name", NAMES)
def test_each_format_has_cases(name: str) -> None:
    cases = [case for case in CASES if case.format == name]
    assert any(case.calls for case in cases)


def fragments(name: str) -> st.SearchStrategy[str]:
    """Texts out of what the parser of a format looks at."""
    words = [*named(name).marks, *(case.text for case in CASES if case.format == name)]
    words += ['{"name": "time"', '"arguments":', "call:time{", "[", "]", "{", "}", ",", ":", "\n"]
    words += ["time", '"', "\\", " ", "a", "<", "<function=time>", "<parameter=a>", "```"]
    return st.lists(st.sampled_from(words), max_size=12).map("".join)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_any_cut_gives_the_same(name: str, data: st.DataObject) -> None:
    text = data.draw(fragments(name))
    ends = data.draw(st.lists(st.integers(0, len(text)), max_size=20))
    cuts = [0, *sorted(ends), len(text)]
    parallel = data.draw(st.booleans())
    texts = [text[start:end] for start, end in pairwise(cuts)]
    shape = form(name, parallel=parallel)
    assert read(shape, texts) == read(shape, [text])


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(alphabet="ab .,!?\n\téß漢🙂'()=+-/", max_size=80))
def test_text_without_calls_passes_unchanged_and_at_once(name: str, text: str) -> None:
    answer = Answer(form(name))
    passed = ""
    for size, char in enumerate(text, 1):
        passed += "".join(piece.content for piece in answer.add(char))
        assert passed == text[:size] or not text[:size].strip()
    passed += "".join(piece.content for piece in answer.end())
    assert passed == text


@pytest.mark.parametrize("name", ["hermes", "qwen3-coder", "glm4"])
def test_only_what_may_be_a_mark_is_held_back(name: str) -> None:
    answer = Answer(form(name))
    sent = [answer.add(text) for text in ("a", "<", "to", "x", "b")]
    assert ["".join(piece.content for piece in pieces) for pieces in sent] == [
        "a",
        "",
        "",
        "<tox",
        "b",
    ]


def test_arguments_are_sent_while_they_arrive() -> None:
    answer = Answer(form("hermes"))
    begun = answer.add('<tool_call>{"name": "weather", "arguments": {"ci')
    assert [(piece.call.name, piece.call.arguments) for piece in begun if piece.call] == [
        ("weather", '{"ci')
    ]
    more = answer.add('ty": "Pa')
    assert [piece.call.arguments for piece in more if piece.call] == ['ty": "Pa']


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"arguments": "' + "a" * 2 * MAX_HELD_CHARACTERS,
        '<tool_call>{"arguments": {' + '"a": [1], ' * MAX_HELD_CHARACTERS,
        '<tool_call>{"name": "' + "a" * 2 * MAX_HELD_CHARACTERS,
        "<tool_call>{" + '"a": 1, ' * MAX_HELD_CHARACTERS,
        "<tool_call>" + "\n" * 2 * MAX_HELD_CHARACTERS,
    ],
    ids=["string", "object", "name", "members", "space"],
)
def test_what_is_held_is_bounded(text: str) -> None:
    answer = Answer(form("hermes"))
    sent, held = 0, 0
    for start in range(0, len(text), 1000):
        sent += sum(len(piece.content) for piece in answer.add(text[start : start + 1000]))
        held = max(held, start + 1000 - sent)
    assert held <= MAX_HELD_CHARACTERS + 2000
    sent += sum(len(piece.content) for piece in answer.end())
    assert sent == len(text)


def test_an_answer_ends_after_its_last_call() -> None:
    answer = Answer(form("hermes", parallel=False))
    pieces = answer.add(CALL + CALL)
    assert answer.complete
    assert [piece.call.name for piece in pieces if piece.call] == ["time"]
    many = Answer(form("hermes"))
    pieces = many.add(CALL * (MAX_CALLS + 1))
    assert many.complete
    assert many.calls == MAX_CALLS


def test_an_id_of_the_model_is_kept_and_others_are_new() -> None:
    joined = read(form("mistral"), ["[TOOL_CALLS]time[CALL_ID]abc123xyz[ARGS]{}"])
    assert joined.ids == ["abc123xyz"]
    ids = [
        piece.call.id
        for name, call in (("mistral", "[TOOL_CALLS]time{}"), ("hermes", CALL))
        for piece in Answer(form(name)).add(call)
        if piece.call
    ]
    assert len(ids[0]) == 9
    assert ids[0].isalnum()
    assert ids[1].startswith("call_")
