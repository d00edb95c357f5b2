"""What an answer must look like, checked before an engine compiles it.

The libraries that compile JSON schemas leave out keywords that they do not know, without a word. So
only those are accepted here that they enforce, alone and beside each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shared.errors import InputTooLargeError, InvalidArgumentError

FIELD = "response_format"
TOOLS = "tools"
MAX_CHARACTERS = 1 << 16
MAX_CHOICES = 1024
# Of a schema; deeper ones are not written by hand.
MAX_DEPTH = 32

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
# They say nothing of what an answer looks like.
_NOTES = frozenset(
    {
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "$comment", "$defs", "definitions"),
    }
)
# Their values have schemas by names that are no keywords.
_NAMED = frozenset({"properties", "$defs", "definitions"})
# What is enforced of each type.
_OF_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
}
# Each of these says all about a value, so what stands beside it would be left out.
_WHOLE = ("$ref", "anyOf", "enum", "const")
FORMATS = ("date", "time", "date-time", "duration", "ipv6", "uuid")
# Parts of regular expressions that are not regular, or that are left out in silence.
_NOT_REGULAR = re.compile(r"\(\?(?!:)|\\[bBAZzGKk1-9]|\\p|\\P|[*+?}]\+")
# What a "." matches.
_NO_BREAK = "[^\\n]"

# In a pattern of a JSON string, what cannot match a quote, a backslash or a control character.
_ESCAPES = "dw.-+*?()[]{}|^$/"

Kind = Literal["json_schema", "regex", "grammar", "calls"]


@dataclass(frozen=True)
class Form:
    """What an answer must look like.

    Attributes:
        kind: what `text` is: a JSON schema, a regular expression, a grammar in EBNF with the rule
            "root", or calls of tools, as a structural tag of xgrammar.
    """

    kind: Kind
    text: str

    @property
    def field(self) -> str:
        """The request's field that asks for it."""
        return TOOLS if self.kind == "calls" else FIELD

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.field if self.kind == "calls" else f"{FIELD}.{self.kind}"

    @classmethod
    def json_object(cls) -> Form:
        """Any JSON object."""
        return cls("json_schema", '{"type": "object", "additionalProperties": true}')

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Form:
        """One of these texts."""
        if not 0 < len(texts) <= MAX_CHOICES:
            raise _refused(f"choice has {len(texts)} texts; it must have from 1 to {MAX_CHOICES}")
        if not all(texts):
            raise _refused("a text of choice is empty")
        quoted = (json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))
        return cls("grammar", f"root ::= {' | '.join(quoted)}")

    def compiled(self) -> Form:
        """The form as the libraries get it, once it is checked.

        A string whose length alone is limited may have any character in their grammars, control
        characters too, which are no JSON. So it becomes a string with a pattern. And a "." of
        theirs matches a line break too, unlike that of most libraries.
        """
        match self.kind:
            case "json_schema":
                return Form(self.kind, json.dumps(_with_patterns(json.loads(self.text))))
            case "regex":
                parts = (
                    _NO_BREAK if part == (".", False) else part[0] for part in _parts(self.text)
                )
                return Form(self.kind, "".join(parts))
        return self

    def check(self) -> None:
        """Refuses what would not be enforced to the letter.

        Raises:
            InvalidArgumentError: with the reason.
            InputTooLargeError: it has more than MAX_CHARACTERS characters.
        """
        if len(self.text) > MAX_CHARACTERS:
            name = "the form of the calls of tools" if self.kind == "calls" else self.name
            raise InputTooLargeError(
                f"{name} has {len(self.text)} characters; the limit is {MAX_CHARACTERS}",
                metadata={"limit": str(MAX_CHARACTERS)},
            )
        if not self.text.strip():
            raise _refused(f"{self.kind} is empty")
        if self.kind == "json_schema":
            check_schema(self.text)
        elif self.kind == "regex":
            _check_regex(self.text, "regex")


def check_schema(text: str) -> None:
    """Refuses a JSON schema with a keyword that would not be enforced.

    Raises:
        InvalidArgumentError: with the place of the keyword.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(f"json_schema is not JSON: {error}") from None
    _check(schema, schema, "", 0)


def _check(schema: Any, root: Any, place: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _refused(f"json_schema is nested more than {MAX_DEPTH} deep")
    if schema is True and depth:
        return
    if not isinstance(schema, dict):
        raise _refused(f"json_schema{place} must be an object, not {json.dumps(schema)[:40]}")
    for name in ("$defs", "definitions"):
        for key, value in _object(schema, name, place).items():
            _check(value, root, f"{place}.{name}.{key}", depth + 1)
    rules = schema.keys() - _NOTES
    if whole := [name for name in _WHOLE if name in rules]:
        _check_whole(whole[0], schema, root, place, depth)
        rules -= {whole[0]}
        if whole[0] in ("enum", "const"):
            rules -= {"type"}
        if rules:
            raise _refused(
                f"json_schema{place} has {min(rules)} beside {whole[0]}, where it would not "
                "be enforced"
            )
        return
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if not isinstance(types, list) or any(each not in _TYPES for each in types):
        raise _refused(f"json_schema{place}.type must be one of {', '.join(_TYPES)}")
    if not types:
        types = ["object"] if rules & _OF_TYPE["object"] else []
        types = types or (["array"] if rules & _OF_TYPE["array"] else [])
    known = {"type"}.union(*(_OF_TYPE.get(each, set()) for each in types))
    if unknown := sorted(rules - known):
        raise _refused(
            f"json_schema{place} has {unknown[0]}, which is not enforced"
            + (f" for type {' or '.join(types)}" if types else " without a type")
            + f"; what is enforced there: {', '.join(sorted({*known, *_WHOLE}))}"
        )
    _check_string(schema, place)
    _check_numbers(schema, place)
    for key, value in _object(schema, "properties", place).items():
        _check(value, root, f"{place}.properties.{key}", depth + 1)
    for name in ("additionalProperties", "items"):
        if isinstance(value := schema.get(name, True), dict):
            _check(value, root, f"{place}.{name}", depth + 1)
        elif not isinstance(value, bool):
            raise _refused(f"json_schema{place}.{name} must be an object or a boolean")
    for index, value in enumerate(_list(schema, "prefixItems", place)):
        _check(value, root, f"{place}.prefixItems[{index}]", depth + 1)
    for name in _list(schema, "required", place):
        if not isinstance(name, str) or name not in schema.get("properties", {}):
            raise _refused(
                f"json_schema{place}.required names {str(name)[:80]!r}, which is not among its "
                "properties"
            )


def _check_whole(name: str, schema: Any, root: Any, place: str, depth: int) -> None:
    if name == "anyOf":
        if not _list(schema, name, place):
            raise _refused(f"json_schema{place}.anyOf is empty")
        for index, value in enumerate(_list(schema, name, place)):
            _check(value, root, f"{place}.anyOf[{index}]", depth + 1)
    elif name == "enum" and not _list(schema, name, place):
        raise _refused(f"json_schema{place}.enum is empty")
    elif name == "$ref":
        reference = schema["$ref"]
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _refused(f"json_schema{place}.$ref must name a part of the schema itself")
        if not isinstance(_referred(root, reference), dict):
            raise _refused(f"json_schema{place}.$ref names {reference[:80]}, which is not there")


def _referred(root: Any, reference: str) -> Any:
    """The schema that a reference names; None if it names none, or what is not checked as one."""
    found = root
    parts = filter(None, reference[1:].split("/"))
    for part in parts:
        if part in _NAMED:
            found, part = found.get(part), next(parts, "")
        elif part not in ("items", "additionalProperties"):
            return None
        found = found.get(part) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            return None
    return found


def _check_string(schema: Mapping[str, Any], place: str) -> None:
    shapes = [name for name in ("pattern", "format") if name in schema]
    if shapes and (len(shapes) > 1 or "minLength" in schema or "maxLength" in schema):
        raise _refused(
            f"json_schema{place} has {shapes[0]} and another rule of its length or shape; only one "
            "of them would be enforced"
        )
    if "format" in schema and schema["format"] not in FORMATS:
        raise _refused(f"json_schema{place}.format must be one of {', '.join(FORMATS)}")
    if "pattern" in schema:
        pattern, where = schema["pattern"], f"json_schema{place}.pattern"
        if not isinstance(pattern, str):
            raise _refused(f"{where} must be a string")
        _check_regex(pattern, where)
        if not (pattern.startswith("^") and pattern.endswith("$")):
            raise _refused(f"{where} must begin with ^ and end with $")
        if unsafe := _unsafe_in_json(pattern):
            raise _refused(
                f"{where} has {unsafe!r}, which may match a quote, a backslash or a control "
                "character; name what may come instead, such as [A-Za-z0-9 ]"
            )


def _check_numbers(schema: Mapping[str, Any], place: str) -> None:
    for name in ("minLength", "maxLength", "minItems", "maxItems"):
        value = schema.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _refused(f"json_schema{place}.{name} must be an integer of 0 or more")
    for name in _OF_TYPE["integer"] & schema.keys():
        if isinstance(schema[name], bool) or not isinstance(schema[name], int):
            raise _refused(f"json_schema{place}.{name} must be an integer")


def _object(schema: Mapping[str, Any], name: str, place: str) -> dict[str, Any]:
    value = schema.get(name, {})
    if not isinstance(value, dict):
        raise _refused(f"json_schema{place}.{name} must be an object")
    return value


def _list(schema: Mapping[str, Any], name: str, place: str) -> list[Any]:
    value = schema.get(name, [])
    if not isinstance(value, list):
        raise _refused(f"json_schema{place}.{name} must be an array")
    return value


def _check_regex(regex: str, where: str) -> None:
    # Escaped backslashes escape nothing.
    if match := _NOT_REGULAR.search(regex.replace("\\\\", "")):
        raise _refused(
            f"{where} has {match[0]!r}, which is not supported: no assertions, word boundaries, "
            "back references, flags, possessive quantifiers or classes of Unicode"
        )
    depth, before = 0, ""
    parts = [part for part, in_class in _parts(regex) if not in_class]
    for part, after in zip(parts, [*parts, ""][1:], strict=True):
        if (part == "^" and (depth or before not in ("", "|"))) or (
            part == "$" and (depth or after not in ("", "|"))
        ):
            raise _refused(f"{where} has {part!r} in the middle, where it would not be enforced")
        depth += {"(": 1, ")": -1}.get(part, 0)
        before = part


def _parts(regex: str) -> Iterator[tuple[str, bool]]:
    """The characters of a regular expression, and whether they are in a class.

    One that is escaped comes with its backslash. The brackets of a class count as outside of it.
    """
    in_class = False
    for part in re.findall(r"\\.|.", regex, re.DOTALL):
        in_class = in_class and part != "]"
        yield part, in_class
        in_class = in_class or part == "["


def _unsafe_in_json(pattern: str) -> str:
    """The first part of a pattern that may match what a JSON string must escape; "" if none."""
    in_class, index = False, 0
    while index < len(pattern):
        part, index = pattern[index], index + 1
        if part == "\\":
            if pattern[index : index + 1] not in tuple(_ESCAPES):
                return pattern[index - 1 : index + 1]
            index += 1
        elif part == '"' or part < " " or (part == "." and not in_class):
            return part
        elif part == "[" and not in_class:
            in_class = True
            if pattern[index : index + 1] == "^":
                return "[^"
        elif part == "]":
            in_class = False
        elif in_class and pattern[index : index + 1] == "-" and pattern[index + 1 :][:1] != "]":
            end = pattern[index + 1 :][:1]
            kinds = (str.isdigit, str.islower, str.isupper)
            if not any(kind(part) and kind(end) for kind in kinds) or not part <= end:
                return f"{part}-{end}"
            index += 2
    return ""


def _with_patterns(schema: Any) -> Any:
    """A schema whose strings of limited length have a pattern instead."""
    if isinstance(schema, list):
        return [_with_patterns(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {
        name: value if name in ("const", "enum", "required") else _with_patterns(value)
        for name, value in schema.items()
        if name not in _NOTES and name not in _NAMED
    }
    for name in _NAMED & schema.keys():
        changed[name] = {key: _with_patterns(value) for key, value in schema[name].items()}
    if isinstance(schema.get("type"), str | list) and (
        isinstance(schema.get("minLength"), int) or isinstance(schema.get("maxLength"), int)
    ):
        least, most = changed.pop("minLength", 0), changed.pop("maxLength", "")
        changed["pattern"] = f'^[^"\\\\\\u0000-\\u001f]{{{least},{most}}}$'
    return changed


def _refused(reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{FIELD}: {reason}", field=FIELD)
