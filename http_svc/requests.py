"""A request from its first byte to the last of its answer: limits, errors, metrics, log."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from http_svc import errors, metrics
from http_svc.answers import EVENTS, JSON, Answer, Events, as_json, event
from http_svc.bodies import BodyReader, ClientGoneError
from http_svc.errors import Dialect
from shared.caller import caller, set_caller
from shared.errors import ServiceError
from shared.rpc.call_limit import Slots
from shared.rpc.interceptors import as_service_error
from shared.telemetry.logs import is_logged, request_id, set_request_id
from shared.telemetry.tracing import REQUEST_ID_KEY, end_call, start_call

log = logging.getLogger("http_svc.requests")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Makes the answer from the headers, the path's parameters and the body.
Operation = Callable[[Headers, dict[str, Any], bytes], Awaitable[Answer]]

# What nginx logs for a client that has left.
_GONE = 499
_CODES = {200: "OK", 400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 413: "RESOURCE_EXHAUSTED"}
_CODES |= {429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
_CODES |= {405: "UNIMPLEMENTED", _GONE: "CANCELLED"}


@dataclass(frozen=True)
class Limits:
    """What all requests share.

    Attributes:
        slots: of requests at once.
        bodies: reads their bodies.
        reader_seconds: longest wait for a client that does not read.
        logged: share of the requests with status 200 that are logged.
    """

    slots: Slots
    bodies: BodyReader
    reader_seconds: float
    logged: float


class Endpoint:
    """An ASGI application of one operation.

    Args:
        route: its path, for metrics and logs.
        operation: makes the answer.
        dialect: how errors are written.
        limits: of all requests.
    """

    def __init__(self, route: str, operation: Operation, dialect: Dialect, limits: Limits) -> None:
        self._route = route
        self._operation = operation
        self._dialect = dialect
        self._limits = limits
        self._in_flight = metrics.IN_FLIGHT.labels(route)
        self._seconds = metrics.SECONDS.labels(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; the work ends when the client leaves."""
        headers = Headers(scope=scope)
        set_request_id(headers.get(REQUEST_ID_KEY) or str(uuid.uuid4()))
        set_caller(headers)
        span = start_call(self._route, headers)
        start = time.perf_counter()
        reply = _Reply(send, self._dialect, self._limits.reader_seconds)
        self._in_flight.inc()
        try:
            await self._answer(scope, headers, receive, reply)
        finally:
            self._in_flight.dec()
            seconds = time.perf_counter() - start
            code = reply.code or _GONE
            if code == _GONE:
                metrics.GONE.labels(self._route).inc()
            self._seconds.observe(seconds)
            metrics.REQUESTS.labels(self._route, str(code)).inc()
            end_call(span, _CODES.get(code, "INTERNAL"))
            if code != 200 or is_logged(self._limits.logged):
                log.info(
                    "request ended",
                    extra={
                        "route": self._route,
                        "http_code": code,
                        "caller": caller(),
                        "ms": round(seconds * 1000, 2),
                    },
                )

    async def _answer(
        self, scope: Scope, headers: Headers, receive: Receive, reply: _Reply
    ) -> None:
        name, slots = caller(), self._limits.slots
        try:
            slots.take(name)
        except ServiceError as error:
            await reply.error(error)
            return
        try:
            async with self._limits.bodies.body(headers, receive) as body:
                parameters = scope.get("path_params", {})
                work = asyncio.create_task(self._work(headers, parameters, body, reply))
                gone = asyncio.create_task(_until_gone(receive))
                try:
                    await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
                    if not work.done():
                        reply.gone()
                finally:
                    gone.cancel()
                    work.cancel()
                    await asyncio.wait((work, gone))
                if not work.cancelled():
                    work.result()
        except ClientGoneError:
            reply.gone()
        except ServiceError as error:  # of the body
            await reply.error(error)
        finally:
            slots.give(name)

    async def _work(
        self, headers: Headers, parameters: dict[str, Any], body: bytes, reply: _Reply
    ) -> None:
        try:
            answer = await self._operation(headers, parameters, body)
            if isinstance(answer, Events):
                await reply.events(answer)
            else:
                await reply.whole(answer.body, answer.media_type)
        except ClientGoneError:
            return
        except Exception as error:  # noqa: BLE001  # each has a status
            if isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            await reply.error(as_service_error(error))


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Reply:
    """The answer of one request, as it is sent.

    Attributes:
        code: the status, once it is sent; 499 if the client left first.
    """

    def __init__(self, send: Send, dialect: Dialect, reader_seconds: float) -> None:
        self._send = send
        self._dialect = dialect
        self._reader_seconds = reader_seconds
        self._events = False
        self.code = 0

    def gone(self) -> None:
        """The client has left."""
        self.code = _GONE

    async def whole(
        self,
        body: bytes,
        media_type: str = JSON,
        code: int = 200,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """Sends an answer in one piece."""
        length = (b"content-length", b"%d" % len(body))
        await self._start(code, media_type, [length, *(headers or ())])
        await self._body(body, more=False)

    async def events(self, answer: Events) -> None:
        """Sends the events as they come; the status with the first."""
        async with aclosing(answer.pieces) as pieces:
            first = await anext(pieces, b"")
            self._events = True
            no_store = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
            await self._start(200, EVENTS, no_store)
            await self._body(first)
            async for piece in pieces:
                await self._body(piece)
        await self._body(b"", more=False)

    async def error(self, error: ServiceError) -> None:
        """Sends an error: with its status, or as an event if events have been sent."""
        body = as_json(self._dialect(error))
        if not self.code:
            await self.whole(body, JSON, errors.status(error), errors.headers(error))
        elif self._events:
            self.code = errors.status(error)
            name = "error" if self._dialect is errors.anthropic else ""
            await self._body(event(body, name))
            await self._body(b"", more=False)

    async def _start(self, code: int, media_type: str, headers: list[tuple[bytes, bytes]]) -> None:
        self.code = code
        kind = (b"content-type", media_type.encode())
        identifier = (b"x-request-id", request_id().encode())
        await self._send(
            {
                "type": "http.response.start",
                "status": code,
                "headers": [kind, identifier, *headers],
            }
        )

    async def _body(self, body: bytes, *, more: bool = True) -> None:
        try:
            async with asyncio.timeout(self._reader_seconds):
                await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            self.gone()
            raise ClientGoneError from None
