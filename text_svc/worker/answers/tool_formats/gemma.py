"""Calls of Gemma 4 and FunctionGemma: a name and arguments in a syntax of their own.

    <|tool_call>call:f{city:<|"|>Paris<|"|>,days:3}<tool_call|>
    <start_function_call>call:f{city:<escape>Paris<escape>,days:3}<end_function_call>

Arguments become JSON while they arrive.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from text_svc.worker.answers.json_calls import read_value
from text_svc.worker.answers.json_text import escaped, json_or_text
from text_svc.worker.answers.pieces import Pieces
from text_svc.worker.answers.syntax import Members, Syntax
from text_svc.worker.answers.text_input import SPACE, Steps, TextInput
from text_svc.worker.answers.tools import Tools

# Deeper lists and objects are not calls.
MAX_DEPTH = 32

_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_KEY = re.compile(r'[^:,{}\[\]<>"]+')
_BARE = re.compile(r"[^,{}\[\]<]+")


@dataclass(frozen=True)
class Marks:
    """Of one of the models."""

    begin: str
    end: str
    quote: str

    def syntax(self, template: str) -> Syntax:
        """How the model writes calls. Of nested values it may read JSON, too."""
        return Syntax(
            (f"{self.begin}call:", "{"),
            f"}}{self.end}",
            separator="",
            members=Members("", ":", (self.quote, self.quote), separator=","),
            triggers=(self.begin,),
        )

    def read(self, source: TextInput, pieces: Pieces, tools: Tools) -> Steps[None]:
        """Reads an answer."""
        while not pieces.full and (yield from source.until((self.begin,), pieces.content)):
            source.hold(back=len(self.begin))
            yield from source.skip(SPACE)
            yield from source.accept("call:")
            name = yield from source.word(_WORD)
            yield from source.skip(SPACE)
            if (yield from source.peek()) == "{" and pieces.begin_call(name):
                source.drop()
                if (yield from _Arguments(source, pieces.arguments, self.quote).read_value()):
                    pieces.end_call()
                    yield from source.skip(SPACE)
                    yield from source.accept(self.end)
                else:
                    pieces.break_call()
            pieces.content(source.held())


class _Arguments:
    """Reads values of this syntax, and emits them as JSON. Each method tells whether it can."""

    def __init__(self, source: TextInput, emit: Callable[[str], None], quote: str) -> None:
        self._source = source
        self._emit = emit
        self._quote = quote

    def read_value(self, depth: int = 0) -> Steps[bool]:
        source, emit = self._source, self._emit
        yield from source.skip(SPACE)
        if (yield from source.accept(self._quote)):
            emit('"')
            mark = yield from source.until((self._quote,), lambda text: emit(escaped(text)))
            emit('"' if mark else "")
            return bool(mark)
        match (yield from source.peek()):
            case '"':
                return (yield from read_value(source, emit))
            case "{" if depth < MAX_DEPTH:
                return (yield from self._read_members("}", depth))
            case "[" if depth < MAX_DEPTH:
                return (yield from self._read_members("]", depth))
        source.hold()
        bare = yield from source.word(_BARE)
        if not bare.strip() or source.holds_too_much:
            return False
        source.drop()
        emit(json_or_text(bare.strip()))
        return True

    def _read_members(self, end: str, depth: int) -> Steps[bool]:
        source, emit = self._source, self._emit
        emit(source.take())
        first = True
        while True:
            yield from source.skip(SPACE)
            if (yield from source.accept(end)):
                emit(end)
                return True
            if not first:
                if not (yield from source.accept(",")):
                    return False
                emit(", ")
            first = False
            if end == "}" and not (yield from self._read_key()):
                return False
            if not (yield from self.read_value(depth + 1)):
                return False

    def _read_key(self) -> Steps[bool]:
        source = self._source
        yield from source.skip(SPACE)
        source.hold()
        if (yield from source.accept(self._quote)):
            parts: list[str] = []
            yield from source.until((self._quote,), parts.append)
            key = "".join(parts)
        elif (yield from source.peek()) == '"':
            parts = []
            yield from read_value(source, parts.append)
            key = "".join(parts)[1:-1]
        else:
            key = (yield from source.word(_KEY)).strip()
        yield from source.skip(SPACE)
        if not (yield from source.accept(":")) or source.holds_too_much:
            return False
        source.drop()
        self._emit(f"{json.dumps(key, ensure_ascii=False)}: ")
        return True


GEMMA4 = Marks("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_GEMMA = Marks("<start_function_call>", "<end_function_call>", "<escape>")
