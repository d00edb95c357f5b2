"""The form of an answer that has calls of tools: one or more that it must have, or strict ones.

It is a structural tag of xgrammar, which both engines with forms follow:
https://xgrammar.mlc.ai/docs/structural_tag/introduction.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared.errors import FailedPreconditionError, InputTooLargeError, InvalidArgumentError
from text_svc.worker.answers.reasoning import ReasoningMarks
from text_svc.worker.answers.syntax import Members, Syntax
from text_svc.worker.answers.tools import Tools
from text_svc.worker.engines.forms import FIELD, MAX_CHARACTERS, Form
from text_svc.worker.generation.tools import ToolRequest

Structure = dict[str, Any]
Schema = Mapping[str, Any]

# Of the definitions that properties refer to: each has a copy of all of its tool's.
MAX_COPIED_CHARACTERS = 4 * MAX_CHARACTERS

_ANY_OBJECT = {"type": "object", "additionalProperties": True}
_ANY_TEXT = {"type": "any_text"}
_NOTHING = {"type": "const_string", "value": ""}
# Between the reasoning and the calls.
_BLANKS = {"type": "regex", "pattern": "[ \\n]{0,2}"}
# Of properties, as they are written without quotes.
_KEY = re.compile(r"[A-Za-z0-9_.$ -]+")
# What their texts are written between begins with it.
_TEXT = "[^<]"


def required_calls(
    syntax: Syntax,
    request: ToolRequest,
    reasoning: ReasoningMarks | None = None,
    *,
    opened: bool = False,
) -> Form:
    """The form of an answer that is calls alone, after the model's reasoning.

    Args:
        syntax: of the model.
        request: with `required` tools.
        reasoning: the model's marks; None if it is not to reason.
        opened: whether the prompt has the first mark already.

    Raises:
        InvalidArgumentError: a strict tool has what cannot be enforced.
        InputTooLargeError: the form would have too many characters.
    """
    calls = _calls(syntax, request, request.required)
    if reasoning and opened:
        calls = _sequence(_tag("", _ANY_TEXT, reasoning.end), _BLANKS, calls)
    elif reasoning:
        thought = _tag(reasoning.begin, _ANY_TEXT, reasoning.end)
        calls = _or(calls, _sequence(thought, _BLANKS, calls))
    return _form(calls)


def strict_calls(syntax: Syntax, request: ToolRequest) -> Form:
    """The form of an answer that is text and calls, as the model decides.

    Raises:
        InvalidArgumentError, InputTooLargeError: as `required_calls`.
        FailedPreconditionError: nothing says for sure where a call begins in a text.
    """
    if not syntax.triggers:
        raise FailedPreconditionError(
            "the format in which this model writes calls has no mark that they begin with, so "
            "strict tools need tool_choice 'required'"
        )
    names = tuple(request.tools.schemas)
    calls = _calls(syntax, request, names)
    tags = [calls] if syntax.begin else calls["tags"]
    return _form(
        {
            "type": "triggered_tags",
            "triggers": list(syntax.triggers),
            "tags": tags,
            "at_least_one": False,
            "stop_after_first": False,
            "excludes": list(syntax.excluded),
        }
    )


def _form(structure: Structure) -> Form:
    return Form("calls", json.dumps({"type": "structural_tag", "format": structure}))


class _Size:
    """Counts what a form takes, so that one that is too large is refused before it is built."""

    def __init__(self) -> None:
        self._characters = 0
        self._copied = 0

    def add(self, structure: Structure) -> None:
        """Counts a part of the form."""
        self._characters += len(json.dumps(structure))
        if self._characters > MAX_CHARACTERS:
            raise InputTooLargeError(
                f"the form of the calls of tools has more than {MAX_CHARACTERS} characters, which "
                "is the limit; fewer tools or smaller parameters help",
                metadata={"limit": str(MAX_CHARACTERS)},
            )

    def copy(self, characters: int) -> None:
        """Counts definitions that a property has a copy of."""
        self._copied += characters
        if self._copied > MAX_COPIED_CHARACTERS:
            raise InputTooLargeError(
                "the definitions in parameters of tools, counted for each property that refers to "
                f"one, have more than {MAX_COPIED_CHARACTERS} characters, which is the limit",
                metadata={"limit": str(MAX_COPIED_CHARACTERS)},
            )


def _calls(syntax: Syntax, request: ToolRequest, names: tuple[str, ...]) -> Structure:
    size = _Size()
    calls = {
        "type": "tags_with_separator",
        "tags": [_call(syntax, request, name, size) for name in names],
        "separator": syntax.separator or "",
        "at_least_one": True,
        "stop_after_first": not request.parallel or syntax.separator is None or request.named,
    }
    return _tag(syntax.begin, calls, syntax.end) if syntax.begin else calls


def _call(syntax: Syntax, request: ToolRequest, name: str, size: _Size) -> Structure:
    field = f"tools[{list(request.tools.schemas).index(name)}].parameters"
    strict = name in request.strict
    schema = request.tools.schemas[name]
    if schema.get("type") != "object":
        if strict:
            raise InvalidArgumentError(f"{field}.type must be object in a strict tool", field=field)
        schema = _ANY_OBJECT
    schema = _enforceable(schema, field, strict=strict)
    if syntax.members is None:
        arguments = _json(schema)
        size.add(arguments)
    else:
        members = _Members(syntax.members, request.tools, name, schema, field, strict, size)
        arguments = members.structure()
    before, after = syntax.call
    if not syntax.call_end:  # a tag needs one: it is the last bracket of the arguments
        return _tag(f"{before}{name}", _sequence(_const(after), arguments), "")
    return _tag(f"{before}{name}{after}", arguments, syntax.call_end)


def _enforceable(schema: Schema, field: str, *, strict: bool) -> Schema:
    """The schema, or a looser one if it cannot be enforced and need not."""
    try:
        Form("json_schema", json.dumps(schema)).check()
    except InputTooLargeError as error:
        message = error.message.removeprefix(f"{FIELD}.json_schema")
        raise InputTooLargeError(f"{field}{message}", metadata=error.metadata) from None
    except InvalidArgumentError as error:
        if not strict:
            return _ANY_OBJECT if schema.get("type") == "object" else {}
        reason = error.message.removeprefix(f"{FIELD}: json_schema")
        raise InvalidArgumentError(f"{field}{reason}", field=field) from None
    return schema


class _Members:
    """The arguments of a call, in a syntax of their own."""

    def __init__(
        self,
        syntax: Members,
        tools: Tools,
        tool: str,
        schema: Schema,
        field: str,
        strict: bool,
        size: _Size,
    ) -> None:
        self._syntax = syntax
        self._tools = tools
        self._tool = tool
        self._schema = schema
        self._field = field
        self._strict = strict
        self._size = size
        self._definitions = {
            name: schema[name] for name in ("$defs", "definitions") if name in schema
        }
        self._definitions_size = len(json.dumps(self._definitions))

    def structure(self) -> Structure:
        """Required ones first. Those that are not come in the order of the schema, if at all."""
        # A schema that was loosened has none: the tool's own names them.
        given = self._tools.schemas[self._tool]
        properties = given.get("properties")
        if not isinstance(properties, Mapping):
            properties = {}
        required = set(self._schema.get("required", ()))
        names = sorted(properties, key=lambda name: name not in required)
        members = [self._member(name, properties[name]) for name in names]
        optional = members[len(required) :]
        if not self._syntax.separator:
            return _sequence(_NOTHING, *members[: len(required)], *map(_maybe, optional))
        if required:
            return _sequence(members[0], *self._others(members[1:], len(required) - 1))
        return _maybe(self._some(members)) if members else _NOTHING

    def _some(self, members: Sequence[Structure]) -> Structure:
        """At least one of some that are optional.

        It has each of them as often as they can be halved: naming what may come after each would
        take the square of their number.
        """
        if len(members) == 1:
            return members[0]
        first, second = members[: len(members) // 2], members[len(members) // 2 :]
        return _or(_sequence(self._some(first), *self._others(second)), self._some(second))

    def _others(self, members: Sequence[Structure], required: int = 0) -> list[Structure]:
        """Those that come after another one; the first ones are required."""
        others = [_sequence(_const(self._syntax.separator), each) for each in members]
        return [*others[:required], *map(_maybe, others[required:])]

    def _member(self, name: str, schema: Any) -> Structure:
        member = self._counted(name, schema)
        self._size.add(member)
        return member

    def _counted(self, name: str, schema: Any) -> Structure:
        field = f"{self._field}.properties.{name}"
        if not _KEY.fullmatch(name):
            raise InvalidArgumentError(
                f"{self._field} has the property {name[:80]!r}, whose name cannot be written in "
                "this model's format of calls",
                field=self._field,
            )
        syntax = self._syntax
        before = f"{syntax.before}{name}{syntax.between}"
        if self._tools.takes_text(self._tool, name):
            value = self._text(schema, field)
            begin, end = syntax.text
            return _sequence(_tag(before + begin, value, end), _const(syntax.after))
        value = _json(self._own(schema, field))
        return _sequence(_const(before), value, _const(syntax.end + syntax.after))

    def _text(self, schema: Schema, field: str) -> Structure:
        """A text that the syntax does not quote as JSON does."""
        if choices := _choices(schema):
            end = self._syntax.text[1]
            if all(each == each.strip() and end not in each for each in choices):
                return _or(*map(_const, choices))
        schema = self._own(schema, field)
        if "pattern" in schema:
            return {"type": "regex", "pattern": schema["pattern"]}
        if "minLength" in schema or "maxLength" in schema:
            least, most = schema.get("minLength", 0), schema.get("maxLength", "")
            return {"type": "regex", "pattern": f"{_TEXT}{{{least},{most}}}"}
        if self._strict and schema.keys() & {"format", "enum", "const"}:
            raise InvalidArgumentError(
                f"{field} has a rule of its text that cannot be enforced in this model's format of "
                "calls; a pattern can",
                field=self._field,
            )
        return _ANY_TEXT

    def _own(self, schema: Any, field: str) -> Schema:
        """The schema of one property, with what it may refer to."""
        if not isinstance(schema, dict):
            return {}
        if '"$ref"' in json.dumps(schema):
            self._size.copy(self._definitions_size)
            schema = schema | self._definitions
        return _enforceable(schema, field, strict=self._strict)


def _choices(schema: Schema) -> list[str]:
    """The texts of which one is chosen; none if any text may be."""
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(choices, list):
        return []
    return [each for each in choices if isinstance(each, str)]


def _json(schema: Schema) -> Structure:
    compiled = Form("json_schema", json.dumps(schema)).compiled()
    return {"type": "json_schema", "json_schema": json.loads(compiled.text)}


def _const(text: str) -> Structure:
    return {"type": "const_string", "value": text}


def _tag(begin: str, content: Structure, end: str) -> Structure:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def _sequence(*elements: Structure) -> Structure:
    kept = [each for each in elements if each != _NOTHING]
    return {"type": "sequence", "elements": kept} if kept else _NOTHING


def _or(*elements: Structure) -> Structure:
    return {"type": "or", "elements": list(elements)}


def _maybe(structure: Structure) -> Structure:
    return _or(structure, _NOTHING)
