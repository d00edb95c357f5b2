"""Calls of Hermes, Qwen 2.5 and 3, and Granite 4: an object between tags.

    <tool_call>{"name": "f", "arguments": {}}</tool_call>

The block may have several objects, or a list. Text before, between and after blocks is content.
"""

from __future__ import annotations

from text_svc.worker.answers.json_calls import read_calls
from text_svc.worker.answers.pieces import Pieces
from text_svc.worker.answers.syntax import Syntax
from text_svc.worker.answers.text_input import SPACE, Steps, TextInput
from text_svc.worker.answers.tools import Tools

BEGIN, END = "<tool_call>", "</tool_call>"
MARKS = (BEGIN, END)

# A bracket too many before the end is a usual slip.
_BRACKETS = "]}"


def syntax(template: str) -> Syntax:
    """How a model of this chat template writes calls."""
    return Syntax((f'{BEGIN}\n{{"name": "', '", "arguments": '), f"}}\n{END}", triggers=(BEGIN,))


def read(source: TextInput, pieces: Pieces, tools: Tools) -> Steps[None]:
    """Reads an answer."""
    while not pieces.full and (yield from source.until((BEGIN,), pieces.content)):
        source.hold(back=len(BEGIN))
        found = yield from read_calls(source, pieces)
        pieces.content(source.held())
        if found:
            source.hold()
            yield from source.skip(SPACE + _BRACKETS)
            if (yield from source.accept(END)):
                source.drop()
            pieces.content(source.held())
