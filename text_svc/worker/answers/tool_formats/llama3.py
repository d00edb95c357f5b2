"""Calls of Llama 3: the answer is an object, `{"name": "f", "parameters": {}}`.

`<|python_tag|>` may come before it, and others may follow after a semicolon. An answer that is some
other JSON, or has the name of no tool, is content.
"""

from __future__ import annotations

from text_svc.worker.answers.json_calls import read_calls
from text_svc.worker.answers.pieces import Pieces
from text_svc.worker.answers.syntax import Syntax
from text_svc.worker.answers.text_input import SPACE, Steps, TextInput
from text_svc.worker.answers.tools import Tools

BEGIN = "<|python_tag|>"
MARKS = (BEGIN,)


def syntax(template: str) -> Syntax:
    """How a model of this chat template writes calls: one alone, and nothing marks it in a text."""
    return Syntax(('{"name": "', '", "parameters": '), "}", separator=None)


def read(source: TextInput, pieces: Pieces, tools: Tools) -> Steps[None]:
    """Reads an answer."""
    source.hold()
    yield from source.skip(SPACE)
    yield from source.accept(BEGIN)
    while True:
        yield from source.skip(SPACE)
        found = False
        if (yield from source.peek()) == "{":
            found = yield from read_calls(source, pieces, tools.names)
        pieces.content(source.held())
        if pieces.full:
            return
        if found and (yield from _another(source)):
            continue
        pieces.content(source.held())
        if not (yield from source.until((BEGIN,), pieces.content)):
            return
        source.hold(back=len(BEGIN))


def _another(source: TextInput) -> Steps[bool]:
    """Goes on to the next call; whether there may be one. What is between is held."""
    source.hold()
    yield from source.skip(SPACE + ";,")
    marked = yield from source.accept(BEGIN)
    yield from source.skip(SPACE)
    return marked or (yield from source.peek()) == "{"
