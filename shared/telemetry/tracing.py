"""Traces of calls with OpenTelemetry, off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

If off, nothing of OpenTelemetry is imported. If on, each call is a span of the caller's trace
(`traceparent`), and the calls made on its behalf are children of this span.

opentelemetry-instrumentation-grpc covers `grpc.aio` too, but not the link between text_svc and the
processes of its models, which a trace must cross.
"""

from __future__ import annotations

import contextvars
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared.caller import caller_metadata
from shared.telemetry.logs import request_id

if TYPE_CHECKING:
    from shared.telemetry.otel import Span, Tracer

REQUEST_ID_KEY = "x-request-id"
# Where gRPC connects if the endpoint names no port.
_DEFAULT_PORT = 443

_tracer: Tracer | None = None
_span: contextvars.ContextVar[Span | None] = contextvars.ContextVar("span", default=None)


def configure(service: str, attributes: Mapping[str, str] | None = None) -> None:
    """Starts tracing if the environment variable is set.

    Args:
        service: the service name of this process's spans.
        attributes: further attributes of the process.

    Raises:
        SystemExit: it is set, but OpenTelemetry is not installed.
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


def collector_port() -> int | None:
    """The TCP port to which this process sends its traces; None if it sends none."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return None
    variables = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    endpoint = next(filter(None, map(os.environ.get, variables)))
    # Without a scheme, urlsplit takes the host for one.
    return urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").port or _DEFAULT_PORT


def start_call(method: str, metadata: Mapping[str, Any]) -> Span | None:
    """Starts the span of an incoming call and makes it the current one of this task.

    Args:
        method: "/service/method".
        metadata: of the call, with the caller's `traceparent` if there is one.
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
    """Metadata for a call made on behalf of the current one: its id, its caller, its priority and
    its trace."""
    metadata = {REQUEST_ID_KEY: request_id()} if request_id() else {}
    metadata |= caller_metadata()
    span = _span.get()
    if _tracer is not None and span is not None:
        metadata |= _tracer.headers(span)
    return tuple(metadata.items())
