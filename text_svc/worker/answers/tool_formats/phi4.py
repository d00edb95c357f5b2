"""Calls of Phi-4-mini and Granite 3: a mark, and a list of objects, or one.

`<|tool_call|>[{"name": "f", "arguments": {}}]<|/tool_call|>`, or `functools[...]`, as Phi-4-mini
also writes it. Granite writes no end.
"""

from __future__ import annotations

from text_svc.worker.answers.json_calls import read_calls
from text_svc.worker.answers.pieces import Pieces
from text_svc.worker.answers.syntax import Syntax
from text_svc.worker.answers.text_input import SPACE, Steps, TextInput
from text_svc.worker.answers.tools import Tools

BEGIN, END = "<|tool_call|>", "<|/tool_call|>"
MARKS = (BEGIN, END)

_FUNCTOOLS = "functools"
_BEGINS = (BEGIN, f"{_FUNCTOOLS}[")


def syntax(template: str) -> Syntax:
    """How a model of this chat template writes calls."""
    marked = BEGIN in template
    begin = BEGIN if marked else _FUNCTOOLS
    return Syntax(
        ('{"name": "', '", "arguments": '),
        "}",
        begin=f"{begin}[",
        end=f"]{END}" if marked and END in template else "]",
        separator=", ",
        triggers=(BEGIN,) if marked else (f"{_FUNCTOOLS}[",),
        excluded=(f"{_FUNCTOOLS}[",) if marked else (BEGIN,),
    )


def read(source: TextInput, pieces: Pieces, tools: Tools) -> Steps[None]:
    """Reads an answer."""
    while not pieces.full and (mark := (yield from source.until(_BEGINS, pieces.content))):
        source.hold(back=len(mark))
        if mark != BEGIN:
            source.back(1)  # the bracket belongs to the list
        found = yield from read_calls(source, pieces)
        pieces.content(source.held())
        if found:
            yield from source.skip(SPACE)
            yield from source.accept(END)
