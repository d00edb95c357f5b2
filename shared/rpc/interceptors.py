"""The one place where errors become statuses, and the base for interceptors of all four call kinds.

grpc-interceptor, which text-embeddings-inference and KServe use, would replace little of the base:
it does not cover requests that cannot be decoded, nor the rules for cancelled calls below.
"""

from __future__ import annotations

import abc
import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from shared.errors import (
    CallCancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
)
from shared.rpc.status import DETAILS_KEY, packed_details, status_of
from shared.telemetry.logs import request_id

log = logging.getLogger(__name__)

# Strings: the classes take type arguments in their stubs alone.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
UnaryCall = Callable[[Any, Context], Awaitable[Any]]
StreamCall = Callable[[Any, Context], AsyncIterator[Any]]

_HANDLER_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def behaviour(handler: Handler) -> Any:
    """The function behind a handler of any of the four kinds."""
    return (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )


def rewrap(handler: Handler, call: UnaryCall | StreamCall) -> Handler:
    """A handler of the same kind and with the same (de)serialisers that calls `call` instead."""
    make = _HANDLER_MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(
        call,
        request_deserializer=tolerant(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )


class Unusable:
    """Stands for a request that cannot be used; handlers never see it.

    Attributes:
        why: a sentence for the caller.
    """

    def __init__(self, why: str) -> None:
        self.why = why


UNDECODABLE = Unusable("the request cannot be decoded: it must be protobuf with UTF-8")
MISSING = Unusable("the call ended without a whole message")


def tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserialiser that does not raise: gRPC would answer UNKNOWN with the name of a class."""
    if deserialize is None or isinstance(deserialize, _Tolerant):
        return deserialize
    return _Tolerant(deserialize)


class _Tolerant:
    def __init__(self, deserialize: Callable[[bytes], Any]) -> None:
        self._deserialize = deserialize

    def __call__(self, data: bytes) -> Any:
        try:
            return self._deserialize(data)
        except DecodeError:
            return UNDECODABLE


def usable(request: Any) -> Any:
    """The request itself.

    Raises:
        InvalidArgumentError: it stands for one that cannot be used.
    """
    if isinstance(request, Unusable):
        raise InvalidArgumentError(request.why)
    return request


async def _all_usable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield usable(request)


class WrappingInterceptor(grpc.aio.ServerInterceptor, abc.ABC):
    """An interceptor that wraps each handler in a function, made once per method."""

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    @abc.abstractmethod
    def wrap(self, handler: Handler, method: str) -> UnaryCall | StreamCall:
        """The function to call instead of the handler's own; `method` is "/service/method"."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            # Unknown methods are not cached: names from the wire would let the cache grow forever.
            return handler
        if handler.response_streaming and inspect.iscoroutinefunction(behaviour(handler)):
            # grpcio's Health.Watch writes to the context directly: there is no stream to wrap.
            return handler
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, rewrap(handler, self.wrap(handler, method)))
        return known[1]


class Interceptors(grpc.aio.ServerInterceptor):
    """Several interceptors, the outermost one first, which change each handler once.

    grpc.aio asks every interceptor at every call, in a coroutine each. What they return depends on
    the handler and its method alone, so here they are asked at a method's first call.
    """

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:
        self._interceptors = tuple(interceptors)
        self._made: dict[str, tuple[Handler, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler  # an unknown method, see `WrappingInterceptor`
        method = handler_call_details.method
        known = self._made.get(method)
        if known is None or known[0] is not handler:
            made = handler
            for interceptor in reversed(self._interceptors):
                made = await interceptor.intercept_service(_returning(made), handler_call_details)
            known = self._made[method] = (handler, made)
        return known[1]


def _returning(handler: Any) -> Callable[[grpc.HandlerCallDetails], Awaitable[Any]]:
    async def continuation(_: grpc.HandlerCallDetails) -> Any:
        return handler

    return continuation


class ErrorInterceptor(WrappingInterceptor):
    """Turns what a handler raises into a status with details; the only place that does.

    A `ServiceError` has its own code. A status from another service of this set that has our
    details passes through unchanged. Other failures of calls made on the caller's behalf keep those
    codes that are meaningful to the caller. Everything else is INTERNAL, with the stack trace in
    the log under the call's request id.
    """

    def wrap(self, handler: Handler, method: str) -> UnaryCall | StreamCall:
        inner = behaviour(handler)
        checked = _all_usable if handler.request_streaming else usable

        async def unary(request: Any, context: Context) -> Any:
            try:
                return await inner(checked(request), context)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
                await abort(context, error)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async with aclosing(inner(checked(request), context)) as responses:
                    async for response in responses:
                        yield response
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
                await abort(context, error)

        return stream if handler.response_streaming else unary


async def abort(context: Context, error: BaseException) -> None:
    """Ends the call with the status of `error`, unless the caller has cancelled the call.

    Any other CancelledError, such as from a call on a channel that was closed meanwhile, must not
    leave the handler: grpc.aio would send no status, and the caller would wait forever.
    """
    if isinstance(error, grpc.aio.AbortError) or is_cancelled_by_caller(error):
        raise error
    if isinstance(error, grpc.aio.AioRpcError) and (passed := packed_details(error)):
        await context.abort(error.code(), error.details() or "", ((DETAILS_KEY, passed),))
    service_error = as_service_error(error)
    status = status_of(service_error)
    await context.abort(
        service_error.code,
        service_error.message,
        ((DETAILS_KEY, status.SerializeToString()),),
    )


def is_cancelled_by_caller(error: BaseException) -> bool:
    """Whether an error that ends the current task is its own cancellation."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


# Codes of calls behind this one that are also meaningful to the caller of this one.
_PASSED_ON: dict[grpc.StatusCode, tuple[type[ServiceError], str]] = {
    kind.code: (kind, message)
    for kind, message in (
        (UnavailableError, "a service behind this one is not reachable"),
        (DeadlineExceededError, "the deadline passed in a service behind this one"),
        (CallCancelledError, "the call was cancelled in a service behind this one"),
        (ResourceExhaustedError, "a message between services is over its limit"),
    )
}


def as_service_error(error: BaseException) -> ServiceError:
    """The error that the caller gets for what a handler raised; logs unexpected exceptions."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return UnavailableError("a call to a service behind this one was interrupted")
    if isinstance(error, grpc.aio.AioRpcError) and error.code() in _PASSED_ON:
        kind, message = _PASSED_ON[error.code()]
        return kind(message)
    if isinstance(error, asyncio.TimeoutError):
        return DeadlineExceededError("the call took too long")
    log.error("unexpected error in a call", exc_info=error)
    return ServiceError(f"internal error; the service's log has it under request id {request_id()}")
