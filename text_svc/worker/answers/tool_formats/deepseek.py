"""Calls of DeepSeek V3, R1 and V3.1: between marks, a name and its arguments.

In V3 and R1, `function`, the mark in the middle, the name, and the arguments as a block of
Markdown; in V3.1 the name, the mark, and the arguments.
"""

from __future__ import annotations

import re

from text_svc.worker.answers.json_calls import read_value
from text_svc.worker.answers.pieces import Pieces
from text_svc.worker.answers.syntax import Syntax
from text_svc.worker.answers.text_input import SPACE, Steps, TextInput
from text_svc.worker.answers.tools import Tools

ALL_BEGIN, ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, MIDDLE, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
MARKS = (ALL_BEGIN, ALL_END, BEGIN, MIDDLE, END)

_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_BLOCK, _LANGUAGE = "```", "json"


def syntax(template: str) -> Syntax:
    """How a model of this chat template writes calls."""
    if _BLOCK in template:
        before = f"{BEGIN}function{MIDDLE}"
        call, end = (before, f"\n{_BLOCK}{_LANGUAGE}\n"), f"\n{_BLOCK}{END}"
    else:
        call, end = (BEGIN, MIDDLE), END
    return Syntax(call, end, begin=ALL_BEGIN, end=ALL_END, triggers=(ALL_BEGIN,), excluded=(BEGIN,))


def read(source: TextInput, pieces: Pieces, tools: Tools) -> Steps[None]:
    """Reads an answer."""
    begins = (ALL_BEGIN, BEGIN)
    while not pieces.full and (mark := (yield from source.until(begins, pieces.content))):
        source.hold(back=len(mark))
        if mark == ALL_BEGIN:
            yield from source.skip(SPACE)
            if not (yield from source.accept(BEGIN)):
                pieces.content(source.held())
                continue
        yield from _read_call(source, pieces)
        pieces.content(source.held())


def _read_call(source: TextInput, pieces: Pieces) -> Steps[None]:
    """Reads what is after the mark that begins a call; what is none stays held."""
    name = yield from source.word(_WORD)
    if not (yield from source.accept(MIDDLE)):
        return
    # In V3.1 the arguments follow; else this was the kind of the tool.
    if own := (yield from source.word(_WORD)):
        name = own
    yield from source.skip(SPACE)
    if in_block := (yield from source.accept(_BLOCK)):
        yield from source.accept(_LANGUAGE)
        yield from source.skip(SPACE)
    if (yield from source.peek()) != "{" or not pieces.begin_call(name):
        return
    source.drop()
    if not (yield from read_value(source, pieces.arguments)):
        pieces.break_call()
        return
    pieces.end_call()
    yield from source.skip(SPACE)
    if in_block:
        yield from source.accept(_BLOCK)
        yield from source.skip(SPACE)
    if (yield from source.accept(END)):
        yield from source.skip(SPACE)
        yield from source.accept(ALL_END)
