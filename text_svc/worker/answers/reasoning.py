"""Reasoning of a model: what it writes before its answer, between marks of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from text_svc.worker.answers.text_input import SPACE, Steps, TextInput

# White space before the closing mark that is not reasoning; of more than this, the end.
MAX_SPACE_CHARACTERS = 256


@dataclass(frozen=True)
class ReasoningMarks:
    """The marks around a model's reasoning."""

    begin: str
    end: str

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt ends with the first mark, so that the answer begins as reasoning."""
        return prompt.rstrip().endswith(self.begin)


# Of public models: Qwen, DeepSeek and many others; Magistral; Gemma 4; Seed-OSS; Command A.
KNOWN_MARKS = (
    ReasoningMarks("<think>", "</think>"),
    ReasoningMarks("[THINK]", "[/THINK]"),
    ReasoningMarks("<|channel>thought", "<channel|>"),
    ReasoningMarks("<seed:think>", "</seed:think>"),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),
)


def marks_of(template: str, has_token: Callable[[str], bool]) -> ReasoningMarks | None:
    """The marks of a model: those in its chat template, else those among its tokens.

    Args:
        template: the source.
        has_token: whether the vocabulary has a token.
    """
    for marks in KNOWN_MARKS:
        if marks.begin in template or marks.end in template:
            return marks
    return next(
        (each for each in KNOWN_MARKS if has_token(each.begin) and has_token(each.end)), None
    )


class ReasoningSplit:
    """Divides an answer into its reasoning and the rest.

    Reasoning is at the beginning of an answer only; elsewhere, marks are text.

    Args:
        marks: of the model.
        begun: whether the prompt has the first mark already.
        reasoning: gets the reasoning, without the white space around it.
        rest: gets the rest.
        kept: gets the reasoning with its marks instead, if it is a part of the content.
    """

    def __init__(
        self,
        marks: ReasoningMarks,
        *,
        begun: bool,
        reasoning: Callable[[str], None],
        rest: Callable[[str], None],
        kept: Callable[[str], None] | None = None,
    ) -> None:
        self._marks = marks
        self._begun = begun
        self._reasoning = reasoning
        self._rest = rest
        self._kept = kept
        self.inside = begun

    def read(self, source: TextInput) -> Steps[None]:
        """Reads an answer."""
        source.hold()
        yield from source.skip("" if self._begun else SPACE)
        self.inside = self._begun or (yield from source.accept(self._marks.begin))
        if not self.inside:
            self._rest(source.held())
        elif self._kept:
            self._kept(source.held())
            self._kept((yield from source.until((self._marks.end,), self._kept)))
        else:
            source.drop()
            yield from source.skip(SPACE)
            trimmed = _Trimmed(self._reasoning)
            mark = yield from source.until((self._marks.end,), trimmed.add)
            if not mark:
                trimmed.end()
            self.inside = not mark
            yield from source.skip(SPACE)
        self.inside = False
        while text := (yield from source.take_rest()):
            self._rest(text)


class _Trimmed:
    """Passes text on without the white space at its end."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._space = ""

    def add(self, text: str) -> None:
        """Adds text."""
        text = self._space + text
        size = len(text.rstrip())
        size = max(size, len(text) - MAX_SPACE_CHARACTERS)
        self._emit(text[:size])
        self._space = text[size:]

    def end(self) -> None:
        """Passes on the white space, for a text that is not at its end."""
        self._emit(self._space)
        self._space = ""
