"""Traces of calls over OpenTelemetry, off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

Off, nothing of OpenTelemetry is imported. On, each call is a span of the caller's trace
(`traceparent`), and what is called on its behalf is told that it belongs to it.
"""

from __future__ import annotations

import contextvars
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shared.telemetry.logs import request_id

if TYPE_CHECKING:
    from shared.telemetry.otel import (
        Span,
        Tracer,
    )

REQUEST_ID_KEY = "x-request-id"

_tracer: Tracer | None = None
_span: contextvars.ContextVar[Span | None] = contextvars.ContextVar("span", default=None)


def configure(service: str, attributes: Mapping[str, str] | None = None) -> None:
    """Starts tracing if the environment asks for it.

    Args:
        service: the name that spans of this process carry.
        attributes: more about the process.

    Raises:
        SystemExit: it asks, and OpenTelemetry is not installed.
    """
    global _tracer
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    try:
        from shared.telemetry.otel import Tracer
    except ImportError:
        sys.exit(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: "
            "pip install 'ml-services[otel]'"
        )
    _tracer = Tracer(service, attributes or {})


def start_call(method: str, metadata: Mapping[str, Any]) -> Span | None:
    """Begins the span of a call that has come in, and makes it the current one of this task.

    Args:
        method: "/service/method".
        metadata: the call's, with the caller's `traceparent` if it has one.
    """
    if _tracer is None:
        return None
    span = _tracer.start(method, metadata, request_id())
    _span.set(span)
    return span


def end_call(span: Span | None, code: str) -> None:
    """Ends the span of a call with the name of its status code."""
    if _tracer is not None and span is not None:
        _tracer.end(span, code)


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata for a call made on behalf of the one that runs now: its request id, its trace."""
    metadata = {REQUEST_ID_KEY: request_id()} if request_id() else {}
    span = _span.get()
    if _tracer is not None and span is not None:
        metadata |= _tracer.headers(span)
    return tuple(metadata.items())
