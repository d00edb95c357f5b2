"""The form of an answer that has calls of tools: one or more that it must have, or strict ones.

It is a structural tag of xgrammar, which both engines with forms follow:
https://xgrammar.mlc.ai/docs/structural_tag/introduction.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from shared.errors import FailedPreconditionError, InvalidArgumentError
from text_svc.worker.answers.reasoning import ReasoningMarks
from text_svc.worker.answers.syntax import Members, Syntax
from text_svc.worker.answers.tools import Tools
from text_svc.worker.engines.forms import FIELD, Form
from text_svc.worker.generation.tools import ToolRequest

Structure = dict[str, Any]
Schema = Mapping[str, Any]

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
        InvalidArgumentError: as `required_calls`.
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


def _calls(syntax: Syntax, request: ToolRequest, names: tuple[str, ...]) -> Structure:
    calls = {
        "type": "tags_with_separator",
        "tags": [_call(syntax, request, name) for name in names],
        "separator": syntax.separator or "",
        "at_least_one": True,
        "stop_after_first": not request.parallel or syntax.separator is None or request.named,
    }
    return _tag(syntax.begin, calls, syntax.end) if syntax.begin else calls


def _call(syntax: Syntax, request: ToolRequest, name: str) -> Structure:
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
    else:
        arguments = _Members(syntax.members, request.tools, name, schema, field, strict).structure()
    before, after = syntax.call
    if not syntax.call_end:  # a tag needs one: it is the last bracket of the arguments
        return _tag(f"{before}{name}", _sequence(_const(after), arguments), "")
    return _tag(f"{before}{name}{after}", arguments, syntax.call_end)


def _enforceable(schema: Schema, field: str, *, strict: bool) -> Schema:
    """The schema, or a looser one if it cannot be enforced and need not."""
    try:
        Form("json_schema", json.dumps(schema)).check()
    except InvalidArgumentError as error:
        if not strict:
            return _ANY_OBJECT if schema.get("type") == "object" else {}
        reason = error.message.removeprefix(f"{FIELD}: json_schema")
        raise InvalidArgumentError(f"{field}{reason}", field=field) from None
    return schema


class _Members:
    """The arguments of a call, in a syntax of their own."""

    def __init__(
        self, syntax: Members, tools: Tools, tool: str, schema: Schema, field: str, strict: bool
    ) -> None:
        self._syntax = syntax
        self._tools = tools
        self._tool = tool
        self._schema = schema
        self._field = field
        self._strict = strict

    def structure(self) -> Structure:
        """Required ones first. Those that are not come in the order of the schema, if at all."""
        # A schema that was loosened has none: the tool's own names them.
        given = self._tools.schemas[self._tool]
        properties = given.get("properties") or {}
        required = set(self._schema.get("required", ()))
        names = sorted(properties, key=lambda name: name not in required)
        members = {name: self._member(name, properties[name]) for name in names}
        separator = self._syntax.separator
        if not separator:
            return _sequence(
                _NOTHING,
                *(each if name in required else _maybe(each) for name, each in members.items()),
            )
        with_separator = {
            name: _sequence(_const(separator), each) for name, each in members.items()
        }
        # Any of them may be the first, up to the first one that must be there.
        choices: list[Structure] = []
        for index, name in enumerate(names):
            rest = [
                each if other in required else _maybe(each)
                for other, each in list(with_separator.items())[index + 1 :]
            ]
            choices.append(_sequence(members[name], *rest))
            if name in required:
                break
        else:
            choices.append(_NOTHING)
        return _or(*choices)

    def _member(self, name: str, schema: Any) -> Structure:
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
        if choices := schema.get("enum") or [schema[name] for name in ("const",) if name in schema]:
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
        names = [name for name in ("$defs", "definitions") if name in self._schema]
        whole = schema | {name: self._schema[name] for name in names}
        return _enforceable(whole, field, strict=self._strict)


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
