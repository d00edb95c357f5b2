"""Text that arrives in pieces, for parsers that read it as if it were all there.

A parser is a generator: it waits for more text with `yield from`, and goes on when there is some.
What it finds depends on the text alone, not on how the text was cut into pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")

# A part of a parser, which returns a T.
Steps = Generator[None, None, T]

# Most characters that a parser holds until it knows what they are.
MAX_HELD_CHARACTERS = 16_384

SPACE = " \t\r\n"


class TextInput:
    """The text of one answer."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._held_from: int | None = None
        self._ended = False

    def add(self, text: str) -> None:
        """Adds what has arrived."""
        done = self._at if self._held_from is None else self._held_from
        self._text = self._text[done:] + text
        self._at -= done
        if self._held_from is not None:
            self._held_from = 0

    def end(self) -> None:
        """Says that there is no more text."""
        self._ended = True

    def peek(self) -> Steps[str]:
        """The next character, which stays; "" at the end of the text."""
        while self._at == len(self._text) and not self._ended:
            yield
        return self._text[self._at : self._at + 1]

    def take(self, size: int = 1) -> str:
        """Takes characters that are there."""
        taken = self._text[self._at : self._at + size]
        self._at += size
        return taken

    def take_run(self, run: re.Pattern[str]) -> str:
        """Takes what matches of the text that is there; may be ""."""
        found = run.match(self._text, self._at)
        return self.take(found.end() - self._at) if found else ""

    def word(self, run: re.Pattern[str]) -> Steps[str]:
        """Takes all that matches, of a pattern that matches any part of what it matches."""
        parts = []
        while (yield from self.peek()) and (part := self.take_run(run)):
            parts.append(part)
            if self.holds_too_much:
                break
        return "".join(parts)

    def back(self, size: int) -> None:
        """Gives back characters that were just taken."""
        self._at -= size

    def take_rest(self) -> Steps[str]:
        """Takes all the text that is there, at least a character; "" at the end."""
        yield from self.peek()
        return self.take(len(self._text) - self._at)

    def skip(self, characters: str) -> Steps[None]:
        """Takes all characters of these kinds, unless too much is held then."""
        while (yield from self.peek()) and self._text[self._at] in characters:
            self._at += 1
            if self.holds_too_much:
                return

    def accept(self, word: str) -> Steps[bool]:
        """Takes a word, if it is what comes next."""
        while True:
            there = self._text[self._at : self._at + len(word)]
            if there == word:
                self._at += len(word)
                return True
            if self._ended or not word.startswith(there):
                return False
            yield

    def until(self, marks: Sequence[str], emit: Callable[[str], None]) -> Steps[str]:
        """Takes the text before the first of some marks, and the mark.

        Args:
            marks: none contains another, except at its end.
            emit: gets the text before, as soon as it cannot be the beginning of a mark.

        Returns:
            The mark; "" if the text ends without one.
        """
        search = _search(tuple(marks))
        while True:
            if found := search.search(self._text, self._at):
                emit(self.take(found.start() - self._at))
                self.take(len(found[0]))
                return found[0]
            kept = 0 if self._ended else _beginning(self._text[self._at :], marks)
            emit(self.take(len(self._text) - self._at - kept))
            if self._ended:
                return ""
            yield

    def hold(self, back: int = 0) -> None:
        """Holds what is taken from here on, and the last characters that were taken."""
        self._held_from = self._at - back

    @property
    def holds(self) -> bool:
        """Whether text is held."""
        return self._held_from is not None

    @property
    def holds_too_much(self) -> bool:
        """Whether more than MAX_HELD_CHARACTERS are held."""
        return self._held_from is not None and self._at - self._held_from > MAX_HELD_CHARACTERS

    def drop(self) -> None:
        """Holds nothing any longer."""
        self._held_from = None

    def held(self) -> str:
        """What is held, which is so no longer; "" if nothing is."""
        held = "" if self._held_from is None else self._text[self._held_from : self._at]
        self._held_from = None
        return held


@cache
def _search(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, marks)))


def _beginning(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of a text that a mark begins with."""
    longest = min(max(map(len, marks)) - 1, len(text))
    for size in range(longest, 0, -1):
        end = text[len(text) - size :]
        if any(mark.startswith(end) for mark in marks):
            return size
    return 0
