"""A small OpenTelemetry collector: it takes traces over gRPC and remembers them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

try:
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
except ImportError:
    pytest.skip(
        "OpenTelemetry is not installed: pip install 'ml-services[otel]'", allow_module_level=True
    )


@dataclass(frozen=True)
class Span:
    """A span as it was received; ids are hexadecimal, `parent` is "" at the top."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    failed: bool
    attributes: dict[str, Any]


class Sink(trace_service_pb2_grpc.TraceServiceServicer):
    """Remembers the spans that it is sent."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._spans: list[Span] = []
        self._lock = threading.Lock()

    def spans(self, trace: str) -> list[Span]:
        """The spans of one trace so far."""
        with self._lock:
            return [span for span in self._spans if span.trace == trace]

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._lock:
            for group in request.resource_spans:
                service = _values(group.resource.attributes)["service.name"]
                for scope in group.scope_spans:
                    self._spans += [_span(str(service), span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def _span(service: str, span: Any) -> Span:
    return Span(
        service=service,
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        attributes=_values(span.attributes),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextlib.contextmanager
def otlp_sink() -> Iterator[Sink]:
    """A sink that listens at `Sink.endpoint`."""
    sink = Sink()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(sink, server)
    sink.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield sink
    finally:
        server.stop(None).wait()
