"""The pieces that an answer is taken apart into."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

# Most calls in an answer, which ends after them.
MAX_CALLS = 128
# Most white space at the beginning that is held because a call may follow.
MAX_SPACE_CHARACTERS = 256

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class CallDelta:
    """What is new of one call; the first delta of a call has its id and name.

    Attributes:
        index: counts the calls of an answer from 0.
        arguments: new text of a JSON object.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Piece:
    """New content, new reasoning, or what is new of a call."""

    content: str = ""
    reasoning: str = ""
    call: CallDelta | None = None


class Pieces:
    """Collects the pieces of one answer.

    White space at the beginning is content only if other content follows, and none after a call.

    Args:
        new_id: makes the ids of calls.
        parallel: whether there may be more than one call.
    """

    def __init__(self, new_id: Callable[[], str], *, parallel: bool) -> None:
        self._new_id = new_id
        self._most = MAX_CALLS if parallel else 1
        self._calls = 0
        self._in_call = self._has_arguments = False
        # At the beginning, what has come so far.
        self._space: str | None = ""
        self._after_call = False
        self._pieces: list[Piece] = []

    @property
    def calls(self) -> int:
        """How many calls there have been."""
        return self._calls

    @property
    def full(self) -> bool:
        """Whether no further call may begin."""
        return self._calls >= self._most

    @property
    def complete(self) -> bool:
        """Whether the answer has all the calls that it may have, and they have ended."""
        return self.full and not self._in_call

    def taken(self) -> list[Piece]:
        """The pieces since the last time."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def end(self) -> None:
        """Ends the answer: its last call may be incomplete."""
        self._in_call = False
        if self._space:
            self._add(Piece(content=self._space))
        self._space = None

    def reasoning(self, text: str) -> None:
        """Adds reasoning."""
        if text:
            self._add(Piece(reasoning=text))

    def content(self, text: str) -> None:
        """Adds content; none after the last call that the answer may have."""
        if self.complete:
            return
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        elif self._space is not None and text:
            text = self._space + text
            if text.isspace() and len(text) <= MAX_SPACE_CHARACTERS:
                self._space = text
                return
            self._space = None
        if text:
            self._add(Piece(content=text))

    def plain(self, text: str) -> None:
        """Adds content that no call can follow right away."""
        if text:
            self._space = None
            self._add(Piece(content=text))

    def begin_call(self, name: str, call_id: str = "") -> bool:
        """Begins a call, if this is a name that a tool can have."""
        if not NAME.fullmatch(name):
            return False
        self._in_call, self._has_arguments = True, False
        self._space, self._after_call = None, True
        call = CallDelta(self._calls, call_id or self._new_id(), name)
        self._calls += 1
        self._add(Piece(call=call))
        return True

    def arguments(self, text: str) -> None:
        """Adds arguments of the call that has begun."""
        if text:
            self._has_arguments = True
            self._add(Piece(call=CallDelta(self._calls - 1, arguments=text)))

    def end_call(self) -> None:
        """Ends the call that has begun."""
        if not self._has_arguments:
            self.arguments("{}")
        self._in_call = False

    def break_call(self) -> None:
        """Ends the call that has begun with the arguments so far: what follows belongs to none."""
        self._in_call = False

    def _add(self, piece: Piece) -> None:
        """Adds a piece, or makes the last one longer."""
        last = self._pieces[-1] if self._pieces else Piece()
        if piece.content and last.content:
            self._pieces[-1] = Piece(content=last.content + piece.content)
        elif piece.reasoning and last.reasoning:
            self._pieces[-1] = Piece(reasoning=last.reasoning + piece.reasoning)
        elif piece.call and last.call and last.call.index == piece.call.index:
            call = last.call
            joined = call.arguments + piece.call.arguments
            self._pieces[-1] = Piece(call=CallDelta(call.index, call.id, call.name, joined))
        else:
            self._pieces.append(piece)
