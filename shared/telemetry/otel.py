"""The part of `shared.telemetry.tracing` that needs OpenTelemetry's packages."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["Span", "Tracer"]

# Longest time that a span waits; a killed process loses the spans of this time.
EXPORT_DELAY_MILLISECONDS = 1000
# A collector that is down must not delay the end of a process.
EXPORT_TIMEOUT_SECONDS = 2.0
# The codes that count as server errors in OpenTelemetry's conventions for gRPC.
_SERVER_ERRORS = {
    *("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
}


class Tracer:
    """Creates spans and sends them to the collector named by OpenTelemetry's variables.

    Args:
        service: `service.name` of every span.
        attributes: further attributes of the process.
    """

    def __init__(self, service: str, attributes: Mapping[str, str]) -> None:
        provider = TracerProvider(
            resource=Resource.create({**attributes, "service.name": service}),
            shutdown_on_exit=False,
        )
        timeout = float(os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT", EXPORT_TIMEOUT_SECONDS))
        provider.add_span_processor(
            BatchSpanProcessor(
                # The collector is reached directly, see `channels.client_options`.
                OTLPSpanExporter(
                    timeout=timeout,
                    channel_options=(("grpc.enable_http_proxy", 0),),  # type: ignore[arg-type]
                ),
                schedule_delay_millis=EXPORT_DELAY_MILLISECONDS,
            )
        )
        atexit.register(provider.shutdown)
        self._tracer = provider.get_tracer("ml-services")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, method: str, metadata: Mapping[str, Any], request_id: str) -> Span:
        """The server span of a call, in the trace given by its metadata or in a new one."""
        service, _, name = method[1:].partition("/")
        return self._tracer.start_span(
            method[1:],
            context=self._propagator.extract(metadata),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "request_id": request_id,
            },
        )

    def end(self, span: Span, code: str) -> None:
        """Ends a span with the name of a gRPC status code."""
        span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
        if code in _SERVER_ERRORS:
            span.set_status(StatusCode.ERROR, code)
        span.end()

    def headers(self, span: Span) -> dict[str, str]:
        """Headers for another process, so that its spans become children of this one."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, trace.set_span_in_context(span))
        return carrier
