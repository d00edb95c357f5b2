"""Calls whose arguments are between tags, a tag for each: Qwen3-Coder's and GLM-4.5's.

    <tool_call><function=f><parameter=city>Paris</parameter></function></tool_call>
    <tool_call>f<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>

A line break after an opening tag and before a closing one belongs to the tag. Values are texts
where the schema of the tool says so, and otherwise JSON if they can be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial

from text_svc.worker.answers.json_text import escaped, json_or_text
from text_svc.worker.answers.pieces import Pieces
from text_svc.worker.answers.syntax import Members, Syntax
from text_svc.worker.answers.text_input import MAX_HELD_CHARACTERS, SPACE, Steps, TextInput
from text_svc.worker.answers.tools import Tools

BEGIN, END = "<tool_call>", "</tool_call>"
MARKS = (BEGIN, END)

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_KEY, _KEY_END = "<arg_key>", "</arg_key>"
_VALUE, _VALUE_END = "<arg_value>", "</arg_value>"

_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_NAME = re.compile(r"[^<>\r\n]+")


def syntax_of_qwen(template: str) -> Syntax:
    """How Qwen3-Coder writes calls."""
    return Syntax(
        (f"{BEGIN}\n{_FUNCTION}", ">\n"),
        f"{_FUNCTION_END}\n{END}",
        members=Members(
            _PARAMETER, ">\n", ("", _PARAMETER_END), end=f"\n{_PARAMETER_END}", after="\n"
        ),
        triggers=(BEGIN,),
        excluded=(_FUNCTION,),
    )


def syntax_of_glm(template: str) -> Syntax:
    """How GLM-4.5 writes calls."""
    return Syntax(
        (BEGIN, "\n"),
        END,
        members=Members(
            _KEY, f"{_KEY_END}\n{_VALUE}", ("", _VALUE_END), end=_VALUE_END, after="\n"
        ),
        triggers=(BEGIN,),
    )


def read_qwen(source: TextInput, pieces: Pieces, tools: Tools) -> Steps[None]:
    """Reads an answer of Qwen3-Coder."""
    begins = (BEGIN, _FUNCTION)
    while not pieces.full and (mark := (yield from source.until(begins, pieces.content))):
        source.hold(back=len(mark))
        if mark == BEGIN:
            yield from source.skip(SPACE)
        if mark == _FUNCTION or (yield from source.accept(_FUNCTION)):
            name = yield from source.word(_WORD)
            if (yield from source.accept(">")) and pieces.begin_call(name):
                source.drop()
                call = _Call(source, pieces, partial(tools.takes_text, name))
                if (yield from call.read(_PARAMETER, ">", "", _PARAMETER_END, _FUNCTION_END)):
                    yield from source.skip(SPACE)
                    yield from source.accept(END)
        pieces.content(source.held())


def read_glm(source: TextInput, pieces: Pieces, tools: Tools) -> Steps[None]:
    """Reads an answer of GLM-4.5."""
    while not pieces.full and (yield from source.until((BEGIN,), pieces.content)):
        source.hold(back=len(BEGIN))
        yield from source.skip(SPACE)
        name = yield from source.word(_WORD)
        yield from source.skip(SPACE)
        if (yield from source.peek()) == "<" and pieces.begin_call(name):
            source.drop()
            call = _Call(source, pieces, partial(tools.takes_text, name))
            yield from call.read(_KEY, _KEY_END, _VALUE, _VALUE_END, END)
        pieces.content(source.held())


class _Call:
    """A call whose name has been read."""

    def __init__(
        self, source: TextInput, pieces: Pieces, takes_text: Callable[[str], bool]
    ) -> None:
        self._source = source
        self._pieces = pieces
        self._takes_text = takes_text

    def read(
        self, key_tag: str, key_end: str, value_tag: str, value_end: str, end: str
    ) -> Steps[bool]:
        """Reads the arguments and the tag that ends them; whether it is there."""
        source, emit = self._source, self._pieces.arguments
        before = "{"
        while True:
            yield from source.skip(SPACE)
            if (yield from source.accept(end)):
                emit("{}" if before == "{" else "}")
                self._pieces.end_call()
                return True
            source.hold()
            if not (yield from source.accept(key_tag)):
                break
            key = (yield from source.word(_NAME)).strip()
            if source.holds_too_much or not (yield from source.accept(key_end)):
                break
            yield from source.skip(SPACE if value_tag else "")
            if not (yield from source.accept(value_tag)):
                break
            source.drop()
            emit(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            before = ", "
            if not (yield from self._read_value(value_end, self._takes_text(key))):
                break
        self._pieces.break_call()
        return False

    def _read_value(self, end: str, is_text: bool) -> Steps[bool]:
        source = self._source
        value = _Value(self._pieces.arguments, is_text)
        yield from source.accept("\n")
        mark = yield from source.until((f"\n{end}", end), value.add)
        value.end(whole=bool(mark))
        return bool(mark)


class _Value:
    """A value: a text, which is passed on, or one that is held until it is whole."""

    def __init__(self, emit: Callable[[str], None], is_text: bool) -> None:
        self._emit = emit
        self._held: list[str] | None = None if is_text else []
        self._size = 0
        if is_text:
            emit('"')

    def add(self, text: str) -> None:
        """Adds a part of it."""
        if self._held is None:
            self._emit(escaped(text))
            return
        self._held.append(text)
        self._size += len(text)
        if self._size > MAX_HELD_CHARACTERS:  # then it is a text
            self._emit('"' + escaped("".join(self._held)))
            self._held = None

    def end(self, *, whole: bool) -> None:
        """Ends it."""
        if self._held is not None:
            self._emit(json_or_text("".join(self._held).strip()) if whole else "")
        elif whole:
            self._emit('"')
