"""What an answer is taken apart into, joined again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from text_svc.worker.answers.answer import Answer, AnswerForm
from text_svc.worker.answers.formats import named
from text_svc.worker.answers.pieces import Piece
from text_svc.worker.answers.tools import Tools

TOOLS = Tools(
    {
        "weather": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "code": {"type": "string"},
                "unit": {"enum": ["C", "F"]},
            },
        },
        "time": {"type": "object", "properties": {}},
    }
)


@dataclass
class Joined:
    """All pieces of an answer."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def add(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            assert bool(piece.content) + bool(piece.reasoning) + bool(piece.call) == 1
            self.content += piece.content
            self.reasoning += piece.reasoning
            if call := piece.call:
                if call.name:
                    assert call.id
                    assert call.index == len(self.calls), "a call begins once, in order"
                    self.calls.append((call.name, ""))
                    self.ids.append(call.id)
                name, arguments = self.calls[call.index]
                self.calls[call.index] = name, arguments + call.arguments

    @property
    def parsed(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


def form(name: str, *, parallel: bool = True, **fields: Any) -> AnswerForm:
    return AnswerForm(TOOLS, named(name), parallel=parallel, **fields)


def read(form: AnswerForm, texts: Sequence[str], prompt: str = "") -> Joined:
    """Takes an answer apart that arrives as these texts."""
    numbers = itertools.count()
    answer, joined = Answer(form, prompt, lambda: f"id{next(numbers)}"), Joined()
    for text in texts:
        joined.add(answer.add(text))
        if answer.complete:
            break
    joined.add(answer.end())
    return joined
