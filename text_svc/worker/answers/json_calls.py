"""Reads calls that are JSON objects: `{"name": "f", "arguments": {"a": 1}}`, or a list of them.

Arguments are passed on as the model writes them. What ends them is their last bracket, so a comma
too many in them does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container

from text_svc.worker.answers.json_text import unquoted
from text_svc.worker.answers.pieces import Pieces
from text_svc.worker.answers.text_input import SPACE, Steps, TextInput

NAME_KEY = "name"
ARGUMENTS_KEYS = ("arguments", "parameters")
# What else public models write into a call; elsewhere, another key means that it is none.
KNOWN_KEYS = (NAME_KEY, *ARGUMENTS_KEYS, "type", "id")

_BRACKETS = {"{": "}", "[": "]"}
_IN_STRING = re.compile(r'[^"\\]+')
_IN_BRACKETS = re.compile(r'[^"{}\[\]]+')
_SCALAR = re.compile(r"[-+.\w]+")


def read_calls(
    source: TextInput, pieces: Pieces, only: Container[str] | None = None
) -> Steps[bool]:
    """Reads an object, or objects one after the other or in a list.

    Args:
        source: at the first bracket, or at space before it. It holds the text that is content if
            there is no call; afterwards, it holds what did not become one.
        pieces: get the calls.
        only: the names of the tools, for text in which other JSON is content.

    Returns:
        Whether there was a call.
    """
    yield from source.skip(SPACE)
    in_list = yield from source.accept("[")
    found = False
    while not pieces.full:
        if found:
            source.hold()
        yield from source.skip(SPACE + "," if found and in_list else SPACE)
        if (yield from source.peek()) != "{":
            break
        if not (yield from _read_call(source, pieces, only)):
            return found
        found = True
        source.drop()
    if found:
        source.drop()
        yield from source.skip(SPACE)
        if in_list:
            yield from source.accept("]")
    return found


def _read_call(source: TextInput, pieces: Pieces, only: Container[str] | None) -> Steps[bool]:
    """Reads one object; whether it is a call, if only the beginning of one."""
    call = _Call(source, pieces, only)
    source.take()
    while True:
        yield from source.skip(SPACE + ",")
        if (yield from source.accept("}")):
            return call.end()
        if not (yield from call.read_member()):
            return call.break_off()


class _Call:
    """A call that is read; its members may be in any order."""

    def __init__(self, source: TextInput, pieces: Pieces, only: Container[str] | None) -> None:
        self._source = source
        self._pieces = pieces
        self._only = only
        self._name: str | None = None
        self._arguments = ""
        self._begun = False

    def read_member(self) -> Steps[bool]:
        """Reads a key and its value; whether they may be those of a call."""
        source = self._source
        key = yield from _read_string(source)
        if key is None or (self._only is not None and key not in KNOWN_KEYS):
            return False
        yield from source.skip(SPACE)
        if not (yield from source.accept(":")):
            return False
        yield from source.skip(SPACE)
        if key == NAME_KEY and self._name is None:
            self._name = yield from _read_string(source)
            return self._name is not None and (self._only is None or self._name in self._only)
        if key not in ARGUMENTS_KEYS or self._begun or self._arguments:
            return (yield from _read_whole(source)) is not None
        if self._name is not None and (yield from source.peek()) == "{":
            # They are passed on while they arrive.
            return self._begin() and (yield from read_value(source, self._pieces.arguments))
        self._arguments = (yield from _read_whole(source)) or ""
        return bool(self._arguments)

    def end(self) -> bool:
        """Ends the object; whether it is a call."""
        if not self._begun:
            if not self._begin():
                return False
            self._pieces.arguments(_object(self._arguments))
        self._pieces.end_call()
        return True

    def break_off(self) -> bool:
        """Leaves the object where it is not what a call is; whether a call has begun."""
        if self._begun:
            self._pieces.break_call()
        return self._begun

    def _begin(self) -> bool:
        self._begun = self._name is not None and self._pieces.begin_call(self._name)
        if self._begun:
            self._source.drop()
        return self._begun


def read_value(source: TextInput, emit: Callable[[str], None]) -> Steps[bool]:
    """Reads one JSON value, whose text is emitted while it arrives.

    Returns:
        False if the text ends before the value, if brackets do not match, if it is not JSON, or if
        too much of it is held.
    """
    closing: list[str] = []
    while char := (yield from source.peek()):
        if source.holds_too_much:
            return False
        if char == '"':
            if not (yield from _pass_string(source, emit)):
                return False
        elif char in _BRACKETS:
            closing.append(_BRACKETS[char])
            emit(source.take())
        elif char in "]}":
            if not closing or closing.pop() != char:
                return False
            emit(source.take())
        elif closing:
            emit(source.take_run(_IN_BRACKETS))
            continue
        else:
            begun = False
            while run := source.take_run(_SCALAR):
                begun = True
                emit(run)
                if not (yield from source.peek()) or source.holds_too_much:
                    break
            return begun
        if not closing:
            return True
    return False


def _pass_string(source: TextInput, emit: Callable[[str], None]) -> Steps[bool]:
    """Reads a string in quotes. False if it does not end, or if too much of it is held."""
    emit(source.take())
    while char := (yield from source.peek()):
        if source.holds_too_much:
            return False
        if char == '"':
            emit(source.take())
            return True
        if char == "\\":
            emit(source.take())
            if (yield from source.peek()):
                emit(source.take())
        else:
            emit(source.take_run(_IN_STRING))
    return False


def _read_string(source: TextInput) -> Steps[str | None]:
    if (yield from source.peek()) != '"':
        return None
    text = yield from _read_whole(source)
    return None if text is None else unquoted(text)


def _read_whole(source: TextInput) -> Steps[str | None]:
    """Reads a value that is needed as a whole; None, and it stays held, if there is none."""
    parts: list[str] = []
    if holds := not source.holds:
        source.hold()
    if not (yield from read_value(source, parts.append)):
        return None
    if holds:
        source.drop()
    return "".join(parts)


def _object(text: str) -> str:
    """Arguments as an object, for a model that writes it as a string, or null for none."""
    if text.startswith('"') and (inner := unquoted(text).strip()).startswith("{"):
        return inner
    return "{}" if text in ("", "null") else text
