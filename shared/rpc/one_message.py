"""Calls whose request is one message: one that ends without it gets a status.

grpc.aio reads the message of such a call itself. If the caller ends its side before the message is
whole, grpc.aio takes it for a cancelled call, runs no handler and sends no status: the caller waits
for ever, and the call stays open on the server. So here the handler is registered as one that takes
a stream, which is the same on the wire, and the message is read from it.

A truncated message at the end of a real stream of messages cannot be told from the end of the
stream: gRPC drops it, and the call goes on with what came before.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from shared.errors import InvalidArgumentError
from shared.rpc.interceptors import MISSING, Context, Handler, Unusable, abort, behaviour, tolerant

# grpc.aio cancels the handler of a caller that has gone within this time; the rest only ended.
_GONE_SECONDS = 0.05


class OneMessageInterceptor(grpc.aio.ServerInterceptor):
    """Reads the request of calls that have one; the outermost interceptor.

    The interceptors behind it get `MISSING` in place of a message that did not come.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        method = handler_call_details.method
        made = self._made.get(method)
        if made is None or made[0] is not handler:
            made = self._made[method] = (handler, _reading(handler))
        return made[1]


def _reading(handler: Handler) -> Handler:
    """A handler that reads the one message of a call before it calls the other's function."""
    inner = behaviour(handler)

    async def unary(_: Any, context: Context) -> Any:
        return await inner(await _read(context), context)

    async def stream(_: Any, context: Context) -> AsyncIterator[Any]:
        async with aclosing(inner(await _read(context), context)) as responses:
            async for response in responses:
                yield response

    async def writing(_: Any, context: Context) -> None:
        """For grpcio's Health.Watch, which writes to the context."""
        request = await _read(context)
        if isinstance(request, Unusable):  # no interceptor is behind this one to say so
            await abort(context, InvalidArgumentError(request.why))
        await inner(request, context)

    make: Any
    call: Any
    if not handler.response_streaming:
        make, call = grpc.stream_unary_rpc_method_handler, unary
    else:
        writes = inspect.iscoroutinefunction(inner)
        make, call = grpc.stream_stream_rpc_method_handler, writing if writes else stream
    reading: Handler = make(
        call,
        request_deserializer=tolerant(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )
    return reading


async def _read(context: Context) -> Any:
    request = await context.read()
    if request is not grpc.aio.EOF:
        return request
    await asyncio.sleep(_GONE_SECONDS)
    return MISSING
