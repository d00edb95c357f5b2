"""Takes one answer apart while it arrives."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass

from text_svc.worker.answers.formats import ToolFormat
from text_svc.worker.answers.pieces import Piece, Pieces
from text_svc.worker.answers.reasoning import ReasoningMarks, ReasoningSplit
from text_svc.worker.answers.text_input import TextInput
from text_svc.worker.answers.tools import Tools

_ID_PREFIX = "call_"
_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_ID_CHARACTERS = 24


@dataclass(frozen=True)
class AnswerForm:
    """What an answer is to be taken apart into.

    Attributes:
        tools: that the model may call; None if it may call none.
        format: how the model writes calls; needed with `tools`.
        parallel: whether there may be more than one call.
        reasoning: the marks of the model's reasoning; None if it has none.
        separate: whether reasoning is apart from the content.
    """

    tools: Tools | None = None
    format: ToolFormat | None = None
    parallel: bool = True
    reasoning: ReasoningMarks | None = None
    separate: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """What an answer must keep, even if the tokenizer writes it as special tokens."""
        marks = self.format.marks if self.format and self.tools else ()
        if self.reasoning and (self.separate or self.tools):
            marks += (self.reasoning.begin, self.reasoning.end)
        return marks


class Answer:
    """Takes one answer apart: texts in, pieces out.

    Attributes:
        marks: see `AnswerForm`.

    Args:
        form: what it may have.
        prompt: the text that it answers; its end says whether the answer begins as reasoning.
        new_id: makes the ids of calls; by default at random.
    """

    def __init__(
        self, form: AnswerForm, prompt: str = "", new_id: Callable[[], str] | None = None
    ) -> None:
        self.marks = form.marks
        size = form.format.id_characters if form.format else 0
        self._pieces = Pieces(new_id or (lambda: _new_id(size)), parallel=form.parallel)
        self._stages: list[_Stage] = []
        self._split: ReasoningSplit | None = None
        content = self._pieces.content
        if form.tools is not None and form.format is not None:
            calls = TextInput()
            calls_stage = _Stage(calls, form.format.read(calls, self._pieces, form.tools))
            self._stages.append(calls_stage)
            content = calls_stage.add
        else:
            content = self._pieces.plain
        if form.reasoning:
            text = TextInput()
            self._split = ReasoningSplit(
                form.reasoning,
                begun=form.reasoning.opened_by(prompt),
                reasoning=self._pieces.reasoning,
                rest=content,
                kept=None if form.separate else self._pieces.plain,
            )
            split_stage = _Stage(text, self._split.read(text))
            self._stages.insert(0, split_stage)
            content = split_stage.add
        self._add = content

    @property
    def calls(self) -> int:
        """How many calls there have been."""
        return self._pieces.calls

    @property
    def complete(self) -> bool:
        """Whether the answer has all the calls that it may have: the model need not go on."""
        return self._pieces.complete

    @property
    def reasons(self) -> bool:
        """Whether what arrives now is reasoning."""
        return bool(self._split and self._split.inside)

    def add(self, text: str) -> list[Piece]:
        """Adds text that has arrived; the pieces that are known now."""
        if text:
            self._add(text)
        return self._pieces.taken()

    def end(self) -> list[Piece]:
        """Ends the answer; its last pieces."""
        for stage in self._stages:
            stage.end()
        self._pieces.end()
        return self._pieces.taken()


class _Stage:
    """A parser and its text."""

    def __init__(self, source: TextInput, steps: Generator[None, None, None]) -> None:
        self._source = source
        self._steps = steps
        self._go_on()

    def add(self, text: str) -> None:
        """Gives it text."""
        self._source.add(text)
        self._go_on()

    def end(self) -> None:
        """Gives it the end."""
        self._source.end()
        self._go_on()

    def _go_on(self) -> None:
        next(self._steps, None)


def _new_id(size: int) -> str:
    prefix = "" if size else _ID_PREFIX
    letters = (secrets.choice(_ID_ALPHABET) for _ in range(size or _ID_CHARACTERS))
    return prefix + "".join(letters)
