"""What an answer must look like is enforced to the letter, or refused."""

import json
import re
from typing import Any

import pytest

from shared.errors import InputTooLargeError, InvalidArgumentError
from text_svc.worker.engines.forms import MAX_CHARACTERS, MAX_CHOICES, Form

PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20, "description": "as it is spoken"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "born": {"type": "string", "format": "date"},
        "size": {"type": ["number", "null"]},
        "kind": {"enum": ["a", 1, None]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}},
        "friend": {"anyOf": [{"$ref": "#/$defs/friend"}, {"type": "null"}]},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"friend": {"type": "object", "properties": {"name": {"type": "string"}}}},
}
# Its references name parts that have the names of keywords.
TREE = {
    "properties": {"items": {"items": {"$ref": "#"}}, "const": {"$ref": "#/properties/items/items"}}
}


@pytest.mark.parametrize("schema", [PERSON, {"type": "array", "prefixItems": [True]}, {}, TREE])
def test_schemas_as_people_write_them_are_accepted(schema: dict[str, Any]) -> None:
    Form("json_schema", json.dumps(schema)).check()


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {"type": "string"}}, "has not, which is not enforced"),
        ({"type": "array", "uniqueItems": True}, "has uniqueItems, which is not enforced"),
        ({"type": "array", "contains": {}}, "has contains"),
        ({"type": "number", "multipleOf": 3}, "has multipleOf"),
        ({"type": "object", "patternProperties": {}}, "has patternProperties"),
        ({"type": "object", "minProperties": 1}, "has minProperties"),
        ({"oneOf": [{"type": "null"}]}, "has oneOf"),
        ({"allOf": [{"type": "null"}]}, "has allOf"),
        ({"if": {}, "then": {}}, "has if"),
        ({"type": "string", "minimum": 3}, "has minimum, which is not enforced for type string"),
        ({"type": "number", "minimum": 3}, "has minimum, which is not enforced for type number"),
        ({"type": "object", "required": ["a"]}, "required names 'a', which is not among its"),
        ({"type": "object", "required": [["a"]]}, "which is not among its"),
        ({"type": "integer", "minimum": 1.5}, "minimum must be an integer"),
        ({"type": "integer", "maximum": "a"}, "maximum must be an integer"),
        ({"type": "string", "pattern": "^a^b$"}, "pattern has '\\^' in the middle"),
        ({"type": "string", "pattern": "^.*$"}, "has '.', which may match a quote"),
        ({"type": "string", "pattern": "^[^a]$"}, "has '\\[\\^', which may match a quote"),
        ({"type": "string", "pattern": "^[ -z]$"}, "has ' -z', which may match a quote"),
        ({"type": "string", "pattern": "^\\s$"}, "pattern has .*s', which may match"),
        ({"type": "string", "pattern": "a"}, "must begin with \\^ and end with \\$"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "has pattern and another rule"),
        ({"type": "string", "pattern": "a(?=b)"}, "pattern has '\\(\\?'"),
        ({"type": "string", "format": "regex"}, "format must be one of date, "),
        ({"const": 3, "minimum": 4}, "has minimum beside const"),
        ({"$ref": "#", "type": "null"}, "has type beside \\$ref"),
        ({"$ref": "#/$defs/a"}, "names #/\\$defs/a, which is not there"),
        (
            {"properties": {"a": {"const": {"not": 1}}, "b": {"$ref": "#/properties/a/const"}}},
            "which is not there",
        ),
        ({"examples": [{}], "$ref": "#/examples"}, "which is not there"),
        ({"$ref": "https://example.org/a"}, "must name a part of the schema itself"),
        ({"type": "nonsense"}, "type must be one of object, array"),
        ({"type": "array", "minItems": -1}, "minItems must be an integer of 0 or more"),
        (
            {"properties": {"a": {"properties": {"b": {"not": {}}}}}},
            ".properties.a.properties.b has",
        ),
        ({"enum": []}, "enum is empty"),
        (False, "must be an object, not false"),
        ([], "must be an object"),
    ],
)
def test_a_keyword_that_is_not_enforced_is_refused_by_its_name(schema: Any, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason) as caught:
        Form("json_schema", json.dumps(schema)).check()
    assert caught.value.field == "response_format"


def test_a_hostile_schema_is_refused() -> None:
    deep: Any = {}
    for _ in range(40):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InvalidArgumentError, match="nested more than 32 deep"):
        Form("json_schema", json.dumps(deep)).check()
    with pytest.raises(InvalidArgumentError, match="is not JSON"):
        Form("json_schema", "[" * 30_000).check()
    with pytest.raises(InputTooLargeError, match=f"the limit is {MAX_CHARACTERS}"):
        Form("regex", "a" * (MAX_CHARACTERS + 1)).check()
    with pytest.raises(InvalidArgumentError, match="grammar is empty"):
        Form("grammar", " ").check()


@pytest.mark.parametrize("regex", [r"a(?!b)", r"\bword\b", r"(a)\1", r"(?i)a", r"\p{L}+", "a*+"])
def test_what_is_not_regular_is_refused(regex: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"regex has .* which is not supported"):
        Form("regex", regex).check()


@pytest.mark.parametrize("regex", ["a^b", "a$b", "(a$)?b", "a(^b)", "a|b^"])
def test_an_anchor_that_is_not_enforced_is_refused(regex: str) -> None:
    with pytest.raises(InvalidArgumentError, match="in the middle, where it would not be enforced"):
        Form("regex", regex).check()


def test_a_dot_matches_no_line_break() -> None:
    form = Form("regex", r".a\.[.\]].(b.)")
    assert form.compiled().text == r"[^\n]a\.[.\]][^\n](b[^\n])"


@pytest.mark.parametrize("name", ["title", "description", "default", "enum", "const", "required"])
@pytest.mark.parametrize("of", ["properties", "$defs"])
def test_properties_may_have_the_names_of_keywords(name: str, of: str) -> None:
    schema = {of: {name: {"type": "string", "title": "a", "maxLength": 5}}, "title": "b"}
    form = Form("json_schema", json.dumps(schema))
    form.check()
    compiled = json.loads(form.compiled().text)
    assert compiled.keys() == {of}
    assert compiled[of][name].keys() == {"type", "pattern"}


def test_a_string_of_limited_length_cannot_break_the_json() -> None:
    form = Form("json_schema", json.dumps({"type": "string", "title": "a", "maxLength": 5}))
    schema = json.loads(form.compiled().text)
    assert schema.keys() == {"type", "pattern"}
    for text, fits in (("a\u20ac b", True), ("abcdef", False), ('"', False), ("\x01", False)):
        assert bool(re.search(schema["pattern"], text)) == fits


@pytest.mark.parametrize(
    "regex", [r"(?:a|b)*?", r"^a\$$|^[$^]b$", r"\\bad", r"[a-z]{2,3}\.\d+", "(yes|no)"]
)
def test_regular_expressions_are_accepted(regex: str) -> None:
    Form("regex", regex).check()


def test_a_choice_is_a_grammar_of_its_texts() -> None:
    assert Form.choice(["a", 'b"\n', "a"]).text == 'root ::= "a" | "b\\"\\n"'
    with pytest.raises(InvalidArgumentError, match="a text of choice is empty"):
        Form.choice(["a", ""])
    with pytest.raises(InvalidArgumentError, match=f"it must have from 1 to {MAX_CHOICES}"):
        Form.choice([])
