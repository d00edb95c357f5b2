"""Calls of Mistral: `[TOOL_CALLS]`, and a list of objects, or a name and its arguments.

[TOOL_CALLS][{"name": "f", "arguments": {}}]            up to Mistral Small 3.1
[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}                 Mistral Small 3.2
[TOOL_CALLS]f[ARGS]{}, or [TOOL_CALLS]f{}               Devstral, Magistral, Ministral 3
"""

from __future__ import annotations

import re

from text_svc.worker.answers.json_calls import read_calls, read_value
from text_svc.worker.answers.pieces import Pieces
from text_svc.worker.answers.syntax import Syntax
from text_svc.worker.answers.text_input import SPACE, Steps, TextInput
from text_svc.worker.answers.tools import Tools

BEGIN, CALL_ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
MARKS = (BEGIN, CALL_ID, ARGUMENTS)

_WORD = re.compile(r"[A-Za-z0-9_.-]+")


def syntax(template: str) -> Syntax:
    """How a model of this chat template writes calls."""
    if ARGUMENTS in template:
        # An id would come between, in some of them; it is not needed.
        return Syntax((BEGIN, ARGUMENTS), "", separator="", triggers=(BEGIN,))
    begin = f"{BEGIN} [" if f"{BEGIN} [" in template else f"{BEGIN}["
    return Syntax(
        ('{"name": "', '", "arguments": '),
        "}",
        begin=begin,
        end="]",
        separator=", ",
        triggers=(BEGIN,),
    )


def read(source: TextInput, pieces: Pieces, tools: Tools) -> Steps[None]:
    """Reads an answer."""
    while not pieces.full and (yield from source.until((BEGIN,), pieces.content)):
        source.hold(back=len(BEGIN))
        yield from source.skip(SPACE)
        if (yield from source.peek()) in ("[", "{"):
            yield from read_calls(source, pieces)
        elif (yield from _read_named(source, pieces)):
            source.drop()
        pieces.content(source.held())


def _read_named(source: TextInput, pieces: Pieces) -> Steps[bool]:
    """Reads a name and its arguments; whether there is a call."""
    name = yield from source.word(_WORD)
    call_id = ""
    if (yield from source.accept(CALL_ID)):
        call_id = yield from source.word(_WORD)
    yield from source.accept(ARGUMENTS)
    yield from source.skip(SPACE)
    if (yield from source.peek()) != "{" or not pieces.begin_call(name, call_id):
        return False
    source.drop()
    if (yield from read_value(source, pieces.arguments)):
        pieces.end_call()
    else:
        pieces.break_call()
    return True
