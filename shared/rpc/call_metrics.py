"""Prometheus metrics of gRPC servers, with the names and labels of go-grpc-prometheus.

py-async-grpc-prometheus (last release 2024-11) counts calls on `grpc.aio` too. This interceptor
also sets the request id, starts the span and logs the end of the call: one wrapper around each
handler instead of four.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)

from shared.caller import caller, set_caller
from shared.rpc.interceptors import (
    Context,
    Handler,
    StreamCall,
    UnaryCall,
    WrappingInterceptor,
    behaviour,
)
from shared.rpc.status import CODES
from shared.telemetry.logs import is_logged, set_request_id
from shared.telemetry.process_metrics import process_figures
from shared.telemetry.tracing import (
    REQUEST_ID_KEY,
    end_call,
    start_call,
)

log = logging.getLogger("shared.calls")

_LABELS = ("grpc_type", "grpc_service", "grpc_method")
disable_created_metrics()
# 1 ms to 5 min: an embedding takes milliseconds, a model load minutes.
_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)

STARTED = Counter("grpc_server_started", "RPCs started on the server.", _LABELS)
HANDLED = Counter(
    "grpc_server_handled", "RPCs completed on the server, by code.", (*_LABELS, "grpc_code")
)
HANDLING = Histogram(
    "grpc_server_handling_seconds", "Time from start to end of RPCs.", _LABELS, buckets=_BUCKETS
)
RECEIVED = Counter("grpc_server_msg_received", "Messages received from clients.", _LABELS)
SENT = Counter("grpc_server_msg_sent", "Messages sent to clients.", _LABELS)
IN_FLIGHT = Gauge("grpc_server_in_flight", "RPCs in progress.", _LABELS)

# prometheus_client exports memory, CPU and file descriptors of the process, but not its threads.
Gauge("process_threads", "Threads of the process.").set_function(
    lambda: figures.threads if (figures := process_figures()) else 0
)

# Probes come every second: they are counted, but not logged.
_QUIET = ("grpc.health.v1.", "grpc.reflection.")


def serve_metrics(host: str, port: int) -> None:
    """Serves `/metrics` in a thread of its own.

    Raises:
        OSError: the port is taken.
    """
    start_http_server(port, addr=host)


class CallInterceptor(WrappingInterceptor):
    """Counts, times and traces every call, sets its request id and logs its end.

    Args:
        logged: share of the calls with status OK that are logged, see `ServerSettings`.
    """

    def __init__(self, logged: float = 1.0) -> None:
        super().__init__()
        self._logged = logged

    def wrap(self, handler: Handler, method: str) -> UnaryCall | StreamCall:
        return _observe(handler, method, self._logged)


class _Method:
    """The metrics of one method; their labels are looked up once."""

    def __init__(self, kind: str, method: str, logged: float) -> None:
        self.name = method
        _, self.service, self.method = method.split("/")
        self._labels = labels = (kind, self.service, self.method)
        self.quiet = self.service.startswith(_QUIET)
        self.started = STARTED.labels(*labels)
        self.in_flight = IN_FLIGHT.labels(*labels)
        self.handling = HANDLING.labels(*labels)
        self.received = RECEIVED.labels(*labels)
        self.sent = SENT.labels(*labels)
        self._handled: dict[str, Counter] = {}
        self._logged = logged

    def handled(self, code: str) -> Counter:
        """The counter of calls that ended with a code."""
        if code not in self._handled:
            self._handled[code] = HANDLED.labels(*self._labels, code)
        return self._handled[code]

    def logs(self, code: str) -> bool:
        """Whether the end of the current call is logged."""
        if self.quiet:
            return False
        return code != "OK" or is_logged(self._logged)


class _Call:
    """The metrics of one call, from start to end."""

    def __init__(self, method: _Method, context: Context) -> None:
        self._method = method
        self.complete = False
        self._start = time.perf_counter()
        metadata = dict(context.invocation_metadata() or ())
        set_request_id(str(metadata.get(REQUEST_ID_KEY) or uuid.uuid4()))
        set_caller(metadata)
        self._span = None if method.quiet else start_call(method.name, metadata)
        method.started.inc()
        method.in_flight.inc()

    def received(self) -> None:
        self._method.received.inc()

    def sent(self, message: Any) -> None:
        self._method.sent.inc()
        # Clients may drop a stream after its last message: that is a normal end.
        self.complete = bool(getattr(message, "done", False) or getattr(message, "is_last", False))

    def end(self, context: Context, error: BaseException | None) -> None:
        code, method = self._code(context, error), self._method
        seconds = time.perf_counter() - self._start
        method.in_flight.dec()
        method.handling.observe(seconds)
        method.handled(code).inc()
        end_call(self._span, code)
        if method.logs(code):
            log.info(
                "call ended",
                extra={
                    "grpc_service": method.service,
                    "grpc_method": method.method,
                    "grpc_code": code,
                    "caller": caller(),
                    "ms": round(seconds * 1000, 2),
                },
            )

    def _code(self, context: Context, error: BaseException | None) -> str:
        gone = isinstance(error, asyncio.CancelledError | GeneratorExit)
        if gone:
            return "OK" if self.complete else "CANCELLED"
        code: Any = context.code()  # a number or a StatusCode, depending on who set it
        number = code.value[0] if isinstance(code, grpc.StatusCode) else code or 0
        if error is not None and not number:
            return "UNKNOWN"
        return CODES[number].name if number in CODES else "UNKNOWN"


def _observe(handler: Handler, name: str, logged: float) -> UnaryCall | StreamCall:
    inner = behaviour(handler)
    if handler.request_streaming:
        kind = "bidi_stream" if handler.response_streaming else "client_stream"
    else:
        kind = "server_stream" if handler.response_streaming else "unary"
    method = _Method(kind, name, logged)

    async def counted(requests: AsyncIterator[Any], call: _Call) -> AsyncIterator[Any]:
        async for request in requests:
            call.received()
            yield request

    def begin(request: Any, context: Context) -> tuple[_Call, Any]:
        call = _Call(method, context)
        if handler.request_streaming:
            return call, counted(request, call)
        call.received()
        return call, request

    async def unary(request: Any, context: Context) -> Any:
        call, request = begin(request, context)
        failure: BaseException | None = None
        try:
            response = await inner(request, context)
            call.sent(response)
            return response
        except BaseException as error:
            failure = error
            raise
        finally:
            call.end(context, failure)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        call, request = begin(request, context)
        failure: BaseException | None = None
        try:
            async with aclosing(inner(request, context)) as responses:
                async for response in responses:
                    call.sent(response)
                    yield response
        except BaseException as error:
            failure = error
            raise
        finally:
            call.end(context, failure)

    return stream if handler.response_streaming else unary
