"""The form of an answer: JSON, or JSON that fits a schema."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import JsonValue

from ml import transformers_pb2 as pb
from shared.errors import MissingFieldError

Kind = Literal["text", "json_object", "json_schema"]
Schema = dict[str, JsonValue]


def put_form(request: pb.ChatRequest, kind: Kind, schema: Schema | None, field: str) -> None:
    """Sets the field of a request.

    Args:
        request: the request.
        kind: of the form.
        schema: of JSON that has one.
        field: the schema's place in the body.

    Raises:
        MissingFieldError: there is no schema.
    """
    if kind == "json_object":
        request.response_format.json_object = True
    elif kind == "json_schema":
        if schema is None:
            raise MissingFieldError(f"{field} is empty", field=field)
        request.response_format.json_schema = json.dumps(schema, ensure_ascii=False)
