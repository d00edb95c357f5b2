"""ml.TransformersService: forwards each call to the process of its model.

A client whose proto has a plain `float temperature` does not send a 0, and cannot ask for a greedy
answer by it. Such a call says so in its metadata, and is forwarded with a temperature of 0.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from ml import transformers_pb2 as pb
from shared.errors import UnknownOptionError
from shared.model_host import ModelNames
from shared.model_ids import parse_model_id
from shared.rpc.interceptors import Context, Handler
from text_svc.link.call import Payload
from text_svc.metrics import observe
from text_svc.models.registry import Registry

_SERVICE = pb.DESCRIPTOR.services_by_name["TransformersService"]
NAME = _SERVICE.full_name

GREEDY_KEY = "greedy"
# Appended to a serialised request, which replaces the field.
_ZERO_TEMPERATURES = {
    "GenerateText": pb.TextRequest(temperature=0).SerializeToString(),
    "ChatCompletion": pb.ChatRequest(temperature=0).SerializeToString(),
}


class Request(NamedTuple):
    """A request as it is forwarded: its bytes, and the model that they name."""

    data: bytes
    model: str

    @classmethod
    def reader(cls, method: MethodDescriptor) -> Callable[[bytes], Request]:
        """The deserializer for requests of an RPC; it raises DecodeError."""
        kind: Any = GetMessageClass(method.input_type)
        return lambda data: cls(data, kind.FromString(data).model)


class TransformersForwarder:
    """Forwards each call to the process of its model, which checks the rest of the request.

    A request is parsed once, here, for the model that it names; a response is not parsed at all.

    Args:
        registry: the models.
        names: other names that requests may use for them.
    """

    def __init__(self, registry: Registry, names: ModelNames | None = None) -> None:
        self._registry = registry
        self._names = names or ModelNames()

    def register(self, server: grpc.aio.Server) -> None:
        """Adds ml.TransformersService to a server."""
        handlers = {method.name: self._handler(method) for method in _SERVICE.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))

    def _handler(self, method: MethodDescriptor) -> Handler:
        make: Any
        forward: Any
        if method.client_streaming:
            make, forward = grpc.stream_stream_rpc_method_handler, self._bidirectional
        elif method.server_streaming:
            make, forward = grpc.unary_stream_rpc_method_handler, self._stream
        else:
            make, forward = grpc.unary_unary_rpc_method_handler, self._unary
        handler: Handler = make(
            partial(forward, method.name),
            request_deserializer=Request.reader(method),
            response_serializer=attrgetter("data"),
        )
        return handler

    async def _unary(self, rpc: str, request: Request, context: Context) -> Payload:
        model_id = self._names.model_of(parse_model_id(request.model, field="model"))
        async with self._registry.use(model_id, rpc) as process:
            response = await process.unary(rpc, request.data, context.time_remaining())
        observe(model_id, response.usage)
        return response

    def _stream(
        self, rpc: str, request: Request, context: Context
    ) -> AsyncGenerator[Payload, None]:
        data = request.data
        if rpc in _ZERO_TEMPERATURES and _is_greedy(context):
            data += _ZERO_TEMPERATURES[rpc]
        return self._forward(rpc, request.model, data, context)

    async def _bidirectional(
        self, rpc: str, requests: AsyncIterator[Request], context: Context
    ) -> AsyncGenerator[Payload, None]:
        """Forwards streams in both directions; the first request names the model."""
        first = await anext(requests, None)
        if first is None:
            return
        data = _chain(first, requests)
        async with aclosing(self._forward(rpc, first.model, data, context)) as responses:
            async for response in responses:
                yield response

    async def _forward(
        self, rpc: str, model: str, data: bytes | AsyncIterator[bytes], context: Context
    ) -> AsyncGenerator[Payload, None]:
        model_id = self._names.model_of(parse_model_id(model, field="model"))
        async with (
            self._registry.use(model_id, rpc) as process,
            aclosing(process.stream(rpc, data, context.time_remaining())) as responses,
        ):
            async for response in responses:
                observe(model_id, response.usage)
                yield response


def _is_greedy(context: Context) -> bool:
    """Whether a call's metadata ask for a greedy answer.

    Raises:
        UnknownOptionError: they say something else than "true" or "false".
    """
    for key, value in context.invocation_metadata() or ():
        if key == GREEDY_KEY:
            word = str(value).strip().lower()
            if word not in ("true", "false"):
                raise UnknownOptionError(
                    f"metadata {GREEDY_KEY} must be one of true, false, not {word[:40]!r}",
                    field=GREEDY_KEY,
                )
            return word == "true"
    return False


async def _chain(first: Request, rest: AsyncIterator[Request]) -> AsyncIterator[bytes]:
    yield first.data
    async for request in rest:
        yield request.data
