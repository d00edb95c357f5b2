"""The OpenAPI document, made from the operations and their fields."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from pydantic.json_schema import models_json_schema

from http_svc.bodies import Body

_ERRORS = {
    "400": "A field is not valid, or asks for something that is not supported.",
    "401": "There is no API key, or it is not known.",
    "404": "The model is not loaded.",
    "413": "The body, or a text, is over its limit.",
    "429": "Too many requests: try again after Retry-After.",
    "503": "A service is down, or there is not enough memory: try again after Retry-After.",
    "504": "It took too long.",
}


class Described(Protocol):
    """What the document needs of an operation."""

    @property
    def path(self) -> str: ...
    @property
    def body(self) -> type[Body]: ...
    @property
    def summary(self) -> str: ...
    @property
    def form(self) -> bool: ...
    @property
    def streams(self) -> bool: ...


def document(operations: Iterable[Described]) -> dict[str, Any]:
    """The document, as JSON values."""
    operations = list(operations)
    kinds = {operation.body: None for operation in operations}
    references, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds],
        ref_template="#/components/schemas/{model}",
        title=None,
    )
    paths: dict[str, Any] = {}
    for operation in operations:
        schema: dict[str, Any] = references[operation.body, "validation"]
        media_type = "application/json"
        if operation.form:
            media_type = "multipart/form-data"
            file = {"properties": {"file": {"type": "string", "format": "binary"}}}
            schema = {"allOf": [schema, file | {"type": "object", "required": ["file"]}]}
        paths[operation.path] = {
            "post": {
                "summary": operation.summary,
                "operationId": operation.path.strip("/").replace("/", "_"),
                "requestBody": {"required": True, "content": {media_type: {"schema": schema}}},
                "responses": _responses(streams=operation.streams),
            }
        }
    paths["/v1/models"] = {
        "get": {
            "summary": "The models that are in memory, on their way there, or desired",
            "operationId": "v1_models",
            "responses": _responses(),
        }
    }
    paths["/v1/models/{model}"] = {
        "get": {
            "summary": "One of them; the slash of its id may be written as it is",
            "operationId": "v1_model",
            "parameters": [
                {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
            ],
            "responses": _responses(),
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "ML services", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"key": []}, {"x-api-key": []}],
    }


def _responses(*, streams: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {}}
    if streams:
        content["text/event-stream"] = {}
    answers: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    for code, description in _ERRORS.items():
        answers[code] = {"description": description, "content": {"application/json": {}}}
    return answers
