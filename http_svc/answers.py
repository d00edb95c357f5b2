"""What an operation answers: one body, or a stream of server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

JSON = "application/json"
EVENTS = "text/event-stream"


@dataclass(frozen=True)
class Whole:
    """An answer in one piece."""

    body: bytes
    media_type: str = JSON


@dataclass(frozen=True)
class Events:
    """An answer in pieces, each the bytes of one or more events.

    It is read up to the first piece before the status is sent, so an error until then has a status
    of its own.
    """

    pieces: AsyncGenerator[bytes, None]


Answer = Whole | Events


def as_json(value: Any) -> bytes:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def whole_json(value: Any) -> Whole:
    """An answer of JSON."""
    return Whole(as_json(value))


def event(data: bytes, name: str = "") -> bytes:
    """A server-sent event; `data` has no line breaks."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data) if name else b"data: %b\n\n" % data


DONE = event(b"[DONE]")
