"""Ends streams whose caller is silent or takes no responses.

A unary call without its message never reaches a handler: the proxy limits its time. A stream does,
at once, so its time is limited here, where the caller can still be told: once a response has begun,
the proxy can only reset the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from shared.errors import DeadlineExceededError
from shared.idle import watch_idle
from shared.rpc.interceptors import (
    Context,
    Handler,
    StreamCall,
    UnaryCall,
    WrappingInterceptor,
    abort,
    behaviour,
)
from shared.settings import ServerSettings

# Streams between our own processes, such as the progress of a load, may be silent for hours. Those
# of the health service write to the context directly.
_EXEMPT = ("/ml.internal.", "/grpc.health.")


@dataclass(frozen=True)
class _Limit:
    """How long one thing may take, and what the caller is told when it takes longer."""

    seconds: float
    message: str


def _idle_limit(seconds: float) -> _Limit:
    return _Limit(seconds, f"no message for {seconds:g} s, the longest that a stream may idle")


class StreamLimits:
    """How long a stream waits for its caller.

    Args:
        first: seconds for the first message.
        idle: seconds without a message in either direction.
        reader: seconds in which a response must be taken.
    """

    def __init__(self, first: float, idle: float, reader: float) -> None:
        self.first = _Limit(first, f"no message within {first:g} s")
        self.idle = _idle_limit(idle)
        self.reader = _Limit(reader, f"a response was not read within {reader:g} s")
        self.check_seconds = min(first, idle, reader)

    @classmethod
    def of(cls, settings: ServerSettings) -> StreamLimits:
        return cls(
            settings.first_message_seconds, settings.stream_idle_seconds, settings.reader_seconds
        )


class StreamLimitsInterceptor(WrappingInterceptor):
    """Ends public streams that exceed the limits with DEADLINE_EXCEEDED."""

    def __init__(self, limits: StreamLimits) -> None:
        super().__init__()
        self._limits = limits

    def wrap(self, handler: Handler, method: str) -> UnaryCall | StreamCall:
        inner = behaviour(handler)
        if method.startswith(_EXEMPT) or not (
            handler.request_streaming or handler.response_streaming
        ):
            call: UnaryCall | StreamCall = inner
            return call
        limits, asks = self._limits, handler.request_streaming

        async def unary(requests: Any, context: Context) -> Any:
            watch = _Watch(limits, context, asks)
            try:
                return await inner(watch.counted(requests), context)
            except asyncio.CancelledError:
                watch.raise_fault()
                raise
            finally:
                watch.close()

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            watch = _Watch(limits, context, asks)
            requests = watch.counted(request) if asks else request
            try:
                async with aclosing(inner(requests, context)) as responses:
                    async for response in responses:
                        await watch.responding()
                        yield response
                        watch.responded()
            except asyncio.CancelledError:
                watch.raise_fault()
                raise
            finally:
                watch.close()

        return stream if handler.response_streaming else unary


class _Watch:
    """Watches one stream. Costs a timer for every few seconds, and a clock reading a message."""

    def __init__(self, limits: StreamLimits, context: Context, asks: bool) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._limits = limits
        self._context = context
        self._task = task
        self._loop = task.get_loop()
        self._idle = limits.idle
        self._limit = limits.first if asks else self._idle
        self._since = self._loop.time()
        self._fault: DeadlineExceededError | None = None
        # Sends headers before there is a response, or the status to a caller that reads nothing.
        self._sending: asyncio.Task[None] | None = None
        self._headers_due = True
        self._asks = asks
        self._timer = self._loop.call_later(limits.check_seconds, self._check)
        watch_idle(self._change_idle)

    async def counted(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            if self._limit is not self._limits.reader:
                self._enter(self._idle)
            yield request

    async def responding(self) -> None:
        if self._headers_due:
            self._headers_due = False
            # Not with the response: the status that ends a reader who does not take it would want
            # to send them once more, and gRPC refuses that.
            await self._send_headers()
        elif self._sending:
            await self._sending
            self._sending = None
        self._enter(self._limits.reader)

    def responded(self) -> None:
        self._enter(self._idle)

    def raise_fault(self) -> None:
        """Raises what ended the stream, if it was this watch that cancelled it."""
        if self._fault:
            self._task.uncancel()
            raise self._fault

    def close(self) -> None:
        self._timer.cancel()

    def _enter(self, limit: _Limit) -> None:
        self._limit = limit
        self._since = self._loop.time()

    def _change_idle(self, seconds: float) -> None:
        """The stream's caller has asked for another limit."""
        idle = _idle_limit(seconds)
        if self._limit is self._idle:
            self._limit = idle
        self._idle = idle
        self._timer.cancel()
        self._check()

    def _check(self) -> None:
        left = self._since + self._limit.seconds - self._loop.time()
        if left <= 0:
            self._end()
            return
        if self._asks and self._headers_due and self._limit is self._idle:
            # The proxy limits the time of a request until its response begins.
            self._headers_due = False
            self._sending = self._loop.create_task(self._send_headers())
        self._timer = self._loop.call_later(min(left, self._limits.check_seconds), self._check)

    def _end(self) -> None:
        self._fault = DeadlineExceededError(self._limit.message)
        if self._limit is self._limits.reader:
            # gRPC is sending, outside of the handler: nothing raised here would become a status.
            # It is behind the response that is not read, for a caller that reads on.
            self._sending = self._loop.create_task(self._send_status(self._fault))
        self._task.cancel()

    async def _send_headers(self) -> None:
        await self._context.send_initial_metadata(())

    async def _send_status(self, fault: DeadlineExceededError) -> None:
        with suppress(Exception):  # the call is over, and `abort` raises in any case
            await abort(self._context, fault)
