"""Bodies of requests, read within limits."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header
from starlette.datastructures import Headers

from http_svc import metrics
from shared.caller import caller
from shared.errors import InputTooLargeError, InvalidArgumentError, QueueFullError
from shared.text import cut

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# Larger ones are parsed in a thread: a MiB of JSON takes some milliseconds.
INLINE_BYTES = 64 << 10
# Numbers, lists and objects take a hundred times the memory of their JSON, strings once.
MAX_VALUES = 100_000
# Of a form: it has one file, and some fields that are short.
MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 << 10


class ClientGoneError(Exception):
    """The client left before its request was complete."""


class Body(BaseModel):
    """A request, of which fields that are not known are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


Element = TypeVar("Element")
# A list of which pydantic reports the first fault alone: it keeps a record of each.
Items = Annotated[list[Element], Field(fail_fast=True)]

# What pydantic puts into a field's place for an alternative of its type, beside names of classes.
_ALTERNATIVES = ("str", "int")
# An object may have as many faults as fields, of which no more than this are looked at.
_MAX_FAULTS = 1000
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)

Kind = TypeVar("Kind", bound=Body)
Result = TypeVar("Result")


class BodyReader:
    """Reads bodies, of which all together have a limit, and those of one caller half of it.

    Args:
        max_bytes: of one body.
        memory: of all bodies together that are being received or answered.
    """

    def __init__(self, max_bytes: int, memory: int) -> None:
        self._max_bytes = max_bytes
        self._memory = memory
        self._taken = 0
        self._taken_by: Counter[str] = Counter()

    @asynccontextmanager
    async def body(self, headers: Headers, receive: Receive) -> AsyncIterator[bytes]:
        """The body; its memory counts until the end of the context.

        Raises:
            InputTooLargeError: it is too large.
            QueueFullError: there are too many others.
            ClientGoneError: the client left.
        """
        taken, name = 0, caller()
        parts: list[bytes] = []
        try:
            length = headers.get("content-length", "")
            if length.isdecimal():
                self._check(int(length[:20]))
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part = message.get("body", b"")
                taken += len(part)
                self._take(name, len(part))
                self._check(taken)
                parts.append(part)
                if not message.get("more_body"):
                    break
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self._give(name, taken)

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise InputTooLargeError(
                f"the body has more than {self._max_bytes} bytes, which is the limit",
                metadata={"limit": str(self._max_bytes)},
            )

    def _take(self, name: str, size: int) -> None:
        self._taken += size
        self._taken_by[name] += size
        metrics.BODY_BYTES.set(self._taken)
        limit = self._memory // 2 if name else self._memory
        if self._taken > self._memory or self._taken_by[name] > limit:
            raise QueueFullError(
                f"the bodies of all requests have {self._memory} bytes, or those of this caller "
                "half of them, which is the limit",
                metadata={"limit": str(self._memory)},
            )

    def _give(self, name: str, size: int) -> None:
        self._taken -= size
        self._taken_by[name] -= size
        if not self._taken_by[name]:
            del self._taken_by[name]
        metrics.BODY_BYTES.set(self._taken)


async def parse(kind: type[Kind], data: bytes) -> Kind:
    """A body of JSON.

    Raises:
        InvalidArgumentError: it is not JSON, or a field of it is not valid.
        InputTooLargeError: it has too many values.
    """
    return await _here_or_in_thread(len(data), _parsed, kind, data)


def _parsed(kind: type[Kind], data: bytes) -> Kind:
    if _values(data) > MAX_VALUES and _values(_STRING.sub(b"", data)) > MAX_VALUES:
        raise InputTooLargeError(
            f"the body has more than {MAX_VALUES} values, which is the limit",
            metadata={"limit": str(MAX_VALUES)},
        )
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _invalid(error) from None


def _values(data: bytes) -> int:
    """At least the number of values of a JSON text, of which strings may have the same signs."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _invalid(error: ValidationError) -> InvalidArgumentError:
    """The fault that is deepest in the body: the others are of alternatives that do not fit."""
    if error.error_count() > _MAX_FAULTS:
        return InvalidArgumentError(f"the body has {error.error_count()} fields that are not valid")
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    fault = max(faults, key=lambda each: len(each["loc"]))
    place = ""
    for step in fault["loc"]:
        if isinstance(step, int):
            place += f"[{step}]"
        elif step.isidentifier() and not step[0].isupper() and step not in _ALTERNATIVES:
            place += f".{step}" if place else step
    message = cut(fault["msg"], 500)
    if fault["type"] == "json_invalid":
        return InvalidArgumentError(f"the body is not valid JSON: {message}")
    return InvalidArgumentError(f"{place or 'the body'}: {message}", field=place or None)


async def parse_form(kind: type[Kind], headers: Headers, data: bytes) -> tuple[Kind, bytes]:
    """A body of `multipart/form-data`: its fields, and the content of its `file`.

    Raises:
        InvalidArgumentError: it is something else, has no file, or a field of it is not valid.
    """
    media_type, options = parse_options_header(headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary:
        raise InvalidArgumentError(
            "the body must be multipart/form-data with a boundary", field="content-type"
        )
    return await _here_or_in_thread(len(data), _parsed_form, kind, boundary, data)


def _parsed_form(kind: type[Kind], boundary: bytes, data: bytes) -> tuple[Kind, bytes]:
    fields: dict[str, Any] = {}
    files: list[bytes] = []
    parts = 0

    def count_part() -> None:
        nonlocal parts
        parts += 1
        if parts > MAX_FIELDS:
            raise FormParserError(f"it has more than {MAX_FIELDS} fields")

    def take_field(field: Any) -> None:
        count_part()
        if len(field.value or b"") > MAX_FIELD_BYTES:
            raise FormParserError(f"it has a field of more than {MAX_FIELD_BYTES} bytes")
        name = (field.field_name or b"").decode(errors="replace")
        value = (field.value or b"").decode(errors="replace")
        if name.endswith("[]"):
            fields.setdefault(name[:-2], []).append(value)
        else:
            fields[name] = value

    def take_file(file: Any) -> None:
        count_part()
        if file.field_name == b"file":
            file.file_object.seek(0)
            files.append(file.file_object.read())

    try:
        parser = FormParser(
            "multipart/form-data",
            take_field,
            take_file,
            boundary=boundary,
            config={"MAX_MEMORY_FILE_SIZE": len(data) + 1},  # nothing is written to the disk
        )
        parser.write(data)
        parser.finalize()
    except FormParserError as error:
        raise InvalidArgumentError(f"the form cannot be read: {cut(str(error), 300)}") from None
    if len(files) != 1:
        raise InvalidArgumentError("the form must have one file, in the field 'file'", field="file")
    try:
        return kind.model_validate(fields), files[0]
    except ValidationError as error:
        raise _invalid(error) from None


async def _here_or_in_thread(size: int, work: Callable[..., Result], *arguments: Any) -> Result:
    if size <= INLINE_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
