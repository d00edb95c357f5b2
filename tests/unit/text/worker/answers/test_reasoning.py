"""Reasoning is told from the rest by the model's marks, at the beginning of an answer alone."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.text.worker.answers.support import form, read
from text_svc.worker.answers.answer import Answer, AnswerForm
from text_svc.worker.answers.reasoning import KNOWN_MARKS, ReasoningMarks

MARKS = ReasoningMarks("<think>", "</think>")
APART = AnswerForm(reasoning=MARKS, separate=True)
CALL = '<tool_call>{"name": "time"}</tool_call>'


class Case(NamedTuple):
    """An answer and its parts."""

    text: str
    reasoning: str = ""
    content: str = ""
    prompt: str = ""


CASES = [
    Case("<think>\nHm.\n\nSo.\n</think>\n\nYes.", "Hm.\n\nSo.", "Yes."),
    Case(" <think>a</think>b <think>c</think>", "a", "b <think>c</think>"),
    Case("<think></think>b", "", "b"),
    Case("<think>\n\n</think>\n\nb", "", "b"),
    Case("a</think>\nb", "a", "b", "<|assistant|><think>\n"),
    Case("<think>a</think>b", "<think>a", "b", "<think>"),
    Case("b", "", "b", "<think>\n\n</think>\n\n"),
    Case("b </think>", "", "b </think>"),
    Case("<think>cut", "cut", ""),
    Case("<think>cut \n", "cut \n", ""),
    Case("<think>a<b</thin", "a<b</thin", ""),
    Case("  <thinking>", "", "  <thinking>"),
    Case("", "", ""),
    Case("<think>a" + " " * 300 + "</think>b", "a" + " " * 44, "b"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.text[:40]))
def test_reasoning_is_apart(case: Case) -> None:
    for texts in ([case.text], list(case.text)):
        joined = read(APART, texts, case.prompt)
        assert (joined.reasoning, joined.content) == (case.reasoning, case.content)


@pytest.mark.parametrize("marks", KNOWN_MARKS, ids=lambda marks: marks.begin)
def test_the_marks_of_other_models(marks: ReasoningMarks) -> None:
    shape = AnswerForm(reasoning=marks, separate=True)
    joined = read(shape, [f"{marks.begin}\na\n{marks.end}b"])
    assert (joined.reasoning, joined.content) == ("a", "b")
    assert read(shape, ["b"]).content == "b"


def test_calls_in_reasoning_are_none() -> None:
    text = f"<think>\nI could write {CALL}.\n</think>\n\n{CALL}"
    joined = read(form("hermes", reasoning=MARKS, separate=True), [text])
    assert joined.reasoning == f"I could write {CALL}."
    assert joined.calls == [("time", "{}")]
    assert joined.content == ""


def test_reasoning_that_is_not_apart_is_content_as_it_is() -> None:
    text = f"<think>\nI could write {CALL}.\n</think>\n\n{CALL}"
    joined = read(form("hermes", reasoning=MARKS), list(text))
    assert joined.content == f"<think>\nI could write {CALL}.\n</think>\n\n"
    assert joined.reasoning == ""
    assert joined.calls == [("time", "{}")]


def test_what_is_reasoning_is_told_while_it_arrives() -> None:
    answer = Answer(APART)
    states = []
    for text in ("<thi", "nk>", "a", "b</think", ">", "c"):
        answer.add(text)
        states.append(answer.reasons)
    assert states == [False, True, True, True, False, False]
    assert Answer(APART, "<think>").reasons


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<", "think>", "a", " ", "\n", CALL]), max_size=10
    ),
    st.lists(st.integers(0, 200), max_size=12),
    st.booleans(),
    st.sampled_from(["", "<think>\n"]),
)
def test_any_cut_gives_the_same(
    words: list[str], ends: list[int], separate: bool, prompt: str
) -> None:
    text = "".join(words)
    cuts = [0, *sorted(min(end, len(text)) for end in ends), len(text)]
    texts = [text[start:end] for start, end in pairwise(cuts)]
    shape = form("hermes", reasoning=MARKS, separate=separate)
    assert read(shape, texts, prompt) == read(shape, [text], prompt)
