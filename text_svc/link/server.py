"""A model's process's end of the link: the methods of its servicer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.message_factory import GetMessageClass

from ml import transformers_pb2
from ml.internal.link_pb2 import Begin, Ended, Frame
from shared.errors import ResourceExhaustedError
from shared.rpc.interceptors import (
    STATUS_DETAILS_KEY,
    ErrorInterceptor,
    Handler,
    abort,
    behaviour,
    rewrap,
)
from shared.telemetry.logs import set_request_id
from shared.telemetry.tracing import (
    REQUEST_ID_KEY,
    end_call,
    start_call,
)
from text_svc.link.call import Exchange
from text_svc.link.framing import FrameProtocol

log = logging.getLogger(__name__)

_SERVICE = transformers_pb2.DESCRIPTOR.services_by_name["TransformersService"]
_MAKERS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}

_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def listen(servicer: Any, path: Path, *, max_message_bytes: int) -> asyncio.Server:
    """Serves the methods of a servicer of ml.TransformersService on a Unix socket.

    Args:
        servicer: of the model.
        path: the socket.
        max_message_bytes: what text_svc can send on to its callers in one message.
    """
    handlers = _handlers(servicer)
    return await asyncio.get_running_loop().create_unix_server(
        lambda: _Connection(handlers, max_message_bytes).frames, str(path)
    )


def _handlers(servicer: Any) -> dict[str, Handler]:
    """The servicer's methods; what they raise is a status."""
    errors = ErrorInterceptor()
    handlers = {}
    for method in _SERVICE.methods:
        handler = _MAKERS[method.client_streaming, method.server_streaming](
            getattr(servicer, method.name),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        handlers[method.name] = rewrap(handler, errors.wrap(handler, method.name))
    return handlers


class _Context:
    """What the error interceptor uses of a gRPC context; the servicers here use none."""

    def __init__(self) -> None:
        self.ended = Ended()

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> NoReturn:
        packed = dict(trailing_metadata).get(STATUS_DETAILS_KEY, b"")
        self.ended = Ended(code=code.value[0], message=details, details=packed)
        raise grpc.aio.AbortError


class _Connection:
    """The calls that came over one connection; they end with it."""

    def __init__(self, handlers: Mapping[str, Handler], max_message_bytes: int) -> None:
        self.frames = FrameProtocol(self._receive, self._closed)
        self._handlers = handlers
        self._max_message_bytes = max_message_bytes
        self._calls: dict[int, tuple[Exchange, asyncio.Task[None]]] = {}

    def _receive(self, frame: Frame) -> None:
        number = frame.call
        if frame.HasField("begin"):
            exchange = Exchange(self.frames, number)
            task = asyncio.create_task(self._run(exchange, frame.begin))
            self._calls[number] = exchange, task
            task.add_done_callback(lambda _: self._calls.pop(number))
        if number not in self._calls:
            return  # it has ended meanwhile
        exchange, task = self._calls[number]
        exchange.receive(frame)
        if frame.cancel:
            task.cancel()

    async def _run(self, exchange: Exchange, begin: Begin) -> None:
        """Runs a call to its end. Its figures and its line in the log are text_svc's."""
        set_request_id(begin.metadata[REQUEST_ID_KEY])
        span = start_call(f"/{_SERVICE.full_name}/{begin.method}", begin.metadata)
        code = grpc.StatusCode.CANCELLED
        try:
            ended, answer = await self._ended(exchange, begin)
            exchange.end(ended, answer)
            code = _CODES[ended.code]
        finally:
            end_call(span, code.name)

    async def _ended(self, exchange: Exchange, begin: Begin) -> tuple[Ended, bytes | None]:
        context = _Context()
        try:
            answer = await self._answer(exchange, self._handlers[begin.method], context)
        except grpc.aio.AbortError:
            return context.ended, None
        except Exception as error:
            log.exception("a call failed outside of its handler", extra={"method": begin.method})
            code: int = grpc.StatusCode.INTERNAL.value[0]
            message = f"{type(error).__name__} in the model's process"
            return Ended(code=code, message=message), None
        return Ended(), answer

    async def _answer(self, exchange: Exchange, handler: Handler, context: Any) -> bytes | None:
        """Runs a handler; sends what it streams, returns its one answer if it does not."""
        call: Any = behaviour(handler)
        requests = _requests(exchange, handler.request_deserializer)
        request: Any = requests if handler.request_streaming else await anext(requests)
        if not handler.response_streaming:
            return await self._serialized(handler, await call(request, context), context)
        async with aclosing(call(request, context)) as answers:
            async for each in answers:
                await exchange.send(await self._serialized(handler, each, context))
        return None

    async def _serialized(self, handler: Handler, answer: Any, context: Any) -> bytes:
        serialize: Any = handler.response_serializer
        data: bytes = serialize(answer)
        if len(data) > self._max_message_bytes:
            limit = self._max_message_bytes
            await abort(
                context,
                ResourceExhaustedError(
                    f"the answer has {len(data)} bytes and the limit is {limit}",
                    metadata={"limit": str(limit)},
                ),
            )
        return data

    def _closed(self) -> None:
        for _, task in self._calls.values():
            task.cancel()


async def _requests(exchange: Exchange, deserialize: Any) -> AsyncIterator[Any]:
    async for message in exchange.messages():
        yield deserialize(message)
