"""The formats of calls, and which one a model has: its chat template says so by its marks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from text_svc.worker.answers.pieces import Pieces
from text_svc.worker.answers.reasoning import KNOWN_MARKS
from text_svc.worker.answers.syntax import Syntax
from text_svc.worker.answers.text_input import Steps, TextInput
from text_svc.worker.answers.tool_formats import (
    deepseek,
    gemma,
    hermes,
    llama3,
    mistral,
    phi4,
    tagged,
)
from text_svc.worker.answers.tools import Tools


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes calls.

    Attributes:
        name: for the load option.
        read: the parser.
        syntax: how a model of a chat template writes calls.
        marks: what the tokens of an answer are kept for, if they are special ones.
        in_template: a template with all of one of these has this format.
        not_in_template: unless it has one of these.
        id_characters: how long ids of calls must be, letters and digits; 0 if they can be anything.
    """

    name: str
    read: Callable[[TextInput, Pieces, Tools], Steps[None]]
    syntax: Callable[[str], Syntax]
    marks: tuple[str, ...]
    in_template: tuple[tuple[str, ...], ...]
    not_in_template: tuple[str, ...] = ()
    id_characters: int = 0


# Tags of other formats, whose marks are otherwise those of Hermes.
_OTHER_TAGS = ("<tool_calls>", "<function=", "<arg_key>", "<invoke ", "<tool_sep", "]<]minimax[>[")

FORMATS = (
    ToolFormat(
        "gemma4",
        gemma.GEMMA4.read,
        gemma.GEMMA4.syntax,
        (gemma.GEMMA4.begin, gemma.GEMMA4.end, gemma.GEMMA4.quote),
        ((gemma.GEMMA4.begin,),),
    ),
    ToolFormat(
        "functiongemma",
        gemma.FUNCTION_GEMMA.read,
        gemma.FUNCTION_GEMMA.syntax,
        (gemma.FUNCTION_GEMMA.begin, gemma.FUNCTION_GEMMA.end, gemma.FUNCTION_GEMMA.quote),
        ((gemma.FUNCTION_GEMMA.begin,),),
    ),
    ToolFormat(
        "mistral", mistral.read, mistral.syntax, mistral.MARKS, ((mistral.BEGIN,),), id_characters=9
    ),
    ToolFormat("deepseek", deepseek.read, deepseek.syntax, deepseek.MARKS, ((deepseek.BEGIN,),)),
    ToolFormat("phi4", phi4.read, phi4.syntax, phi4.MARKS, ((phi4.BEGIN,), ("functools[",))),
    ToolFormat(
        "qwen3-coder",
        tagged.read_qwen,
        tagged.syntax_of_qwen,
        tagged.MARKS,
        ((tagged.BEGIN, "<function="),),
    ),
    ToolFormat(
        "glm4", tagged.read_glm, tagged.syntax_of_glm, tagged.MARKS, ((tagged.BEGIN, "<arg_key>"),)
    ),
    ToolFormat("hermes", hermes.read, hermes.syntax, hermes.MARKS, ((hermes.BEGIN,),), _OTHER_TAGS),
    ToolFormat(
        "llama3",
        llama3.read,
        llama3.syntax,
        llama3.MARKS,
        ((llama3.BEGIN,), ('{"name": function name, "parameters":',)),
        _OTHER_TAGS,
    ),
)
NAMES = tuple(sorted(one.name for one in FORMATS))
# All marks, those of reasoning too.
MARKS = tuple(
    dict.fromkeys(
        [mark for one in FORMATS for mark in one.marks]
        + [mark for one in KNOWN_MARKS for mark in (one.begin, one.end)]
    )
)


def named(name: str) -> ToolFormat:
    """The format of a name."""
    return next(one for one in FORMATS if one.name == name)


def of_template(template: str) -> ToolFormat | None:
    """The format that a chat template has; None if it is none of these."""
    for one in FORMATS:
        marked = any(all(mark in template for mark in marks) for marks in one.in_template)
        if marked and not any(mark in template for mark in one.not_in_template):
            return one
    return None
