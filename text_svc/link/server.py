"""The end of the link in a model's process: answers calls with the model's handlers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from ml import transformers_pb2 as pb
from ml.internal.link_pb2 import (
    Beat,
    Begin,
    EmbeddingUsage,
    Ended,
    Envelope,
    MemoryFigures,
    Usage,
)
from shared.caller import set_caller
from shared.errors import NotImplementedRpcError, ResourceExhaustedError
from shared.process import exit_if_out_of_memory
from shared.rpc.interceptors import as_service_error, is_cancelled_by_caller
from shared.rpc.status import status_of
from shared.telemetry.logs import set_request_id
from shared.telemetry.tracing import (
    REQUEST_ID_KEY,
    end_call,
    start_call,
)
from text_svc.formats.load_errors import memory_error
from text_svc.link.call import Call
from text_svc.link.framing import EnvelopeProtocol

SERVICE = pb.DESCRIPTOR.services_by_name["TransformersService"]

# What answers the RPCs of a model, by name. A handler takes the request, or an async iterator of
# requests; it is a coroutine function, or an async generator function where responses stream. It
# raises `ServiceError`.
Handlers: TypeAlias = Mapping[str, Callable[[Any], Any]]


async def listen(
    handlers: Handlers,
    path: Path,
    *,
    max_message_bytes: int,
    stuck: Callable[[], int] = lambda: 0,
    memory: Callable[[], MemoryFigures] = MemoryFigures,
    activity: Activity | None = None,
) -> asyncio.Server:
    """Serves RPCs of ml.TransformersService on a Unix socket.

    Args:
        handlers: of the RPCs that the model answers.
        path: the socket.
        max_message_bytes: largest response that text_svc can send to its callers.
        stuck: called at each heartbeat; see `Beat` in link.proto.
        memory: called when text_svc asks for it.
        activity: counts the calls.
    """
    served = _Served(max_message_bytes, stuck, memory, activity or Activity())
    methods = {name: _Method.of(name, handler) for name, handler in handlers.items()}
    return await asyncio.get_running_loop().create_unix_server(
        lambda: _Connection(methods, served).protocol, str(path)
    )


class Activity:
    """The calls that a model answers, and for how long it has had none."""

    def __init__(self) -> None:
        self._running = 0
        self._since = time.monotonic()

    def began(self) -> None:
        """Counts a call."""
        self._running += 1

    def ended(self) -> None:
        """Notes the end of one."""
        self._running -= 1
        self._since = time.monotonic()

    def idle_seconds(self) -> float:
        """For how long there have been no calls; 0 while there are."""
        return 0.0 if self._running else time.monotonic() - self._since


@dataclass(frozen=True)
class _Served:
    """The arguments of `listen`."""

    max_message_bytes: int
    stuck: Callable[[], int]
    memory: Callable[[], MemoryFigures]
    activity: Activity


@dataclass(frozen=True)
class _Method:
    """A handler, and what the proto says of its RPC."""

    handler: Callable[[Any], Any]
    request: type[Message]
    requests_stream: bool
    responses_stream: bool

    @classmethod
    def of(cls, name: str, handler: Callable[[Any], Any]) -> _Method:
        rpc = SERVICE.methods_by_name[name]
        request = GetMessageClass(rpc.input_type)
        return cls(handler, request, rpc.client_streaming, rpc.server_streaming)


class _Connection:
    """The calls that came over one connection; they end with it."""

    def __init__(self, methods: Mapping[str, _Method], served: _Served) -> None:
        self.protocol = EnvelopeProtocol(self._receive, self._closed)
        self._methods = methods
        self._served = served
        self._calls: dict[int, tuple[Call, asyncio.Task[None]]] = {}

    def _receive(self, envelope: Envelope) -> None:
        number = envelope.call
        if envelope.HasField("begin"):
            call = Call(self.protocol, number)
            task = asyncio.create_task(self._run(call, envelope.begin))
            self._calls[number] = call, task
            self._served.activity.began()
            task.add_done_callback(lambda _: self._ended(number))
        if number not in self._calls:
            if envelope.ping:
                self.protocol.send(Envelope(beat=Beat(stuck=self._served.stuck())))
            if envelope.measure:
                self.protocol.send(Envelope(memory=self._served.memory()))
            return  # else it has ended
        call, task = self._calls[number]
        call.receive(envelope)
        if envelope.cancel:
            task.cancel()

    async def _run(self, call: Call, begin: Begin) -> None:
        """Runs a call to its end. text_svc counts and logs it; here it gets a span of its own."""
        set_request_id(begin.metadata[REQUEST_ID_KEY])
        set_caller(begin.metadata)
        span = start_call(f"/{SERVICE.full_name}/{begin.method}", begin.metadata)
        code = "CANCELLED"
        try:
            await self._answer(call, begin.method)
            code = "OK"
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as raised:  # a panic of a library in Rust is no Exception
            if is_cancelled_by_caller(raised):
                raise
            exit_if_out_of_memory(raised)
            error = memory_error(raised) or as_service_error(raised)
            code = error.code.name
            details = status_of(error).SerializeToString()
            call.end(Ended(code=error.code.value[0], message=error.message, details=details))
        finally:
            end_call(span, code)

    async def _answer(self, call: Call, name: str) -> None:
        """Runs the handler of a call and sends its responses and the end."""
        method = self._methods.get(name)
        if method is None:
            raise NotImplementedRpcError(f"the model does not support {name}")
        requests = _requests(call, method.request)
        request: Any = requests if method.requests_stream else await anext(requests)
        last: Message | None = None
        if method.responses_stream:
            async with aclosing(method.handler(request)) as responses:
                async for response in responses:
                    if getattr(response, "done", False):
                        last = response  # sent with the end: one envelope, not two
                    else:
                        await call.send(self._serialized(response), _usage(response))
        else:
            last = await method.handler(request)
        if last is None:
            call.end(Ended())
        else:
            call.end(Ended(), self._serialized(last), _usage(last))

    def _serialized(self, response: Message) -> bytes:
        data = response.SerializeToString()
        limit = self._served.max_message_bytes
        if len(data) > limit:
            raise ResourceExhaustedError(
                f"the response has {len(data)} bytes; the limit is {limit}",
                metadata={"limit": str(limit)},
            )
        return data

    def _ended(self, number: int) -> None:
        del self._calls[number]
        self._served.activity.ended()

    def _closed(self) -> None:
        for _, task in self._calls.values():
            task.cancel()


async def _requests(call: Call, kind: type[Message]) -> AsyncIterator[Message]:
    async for payload in call.payloads():
        yield kind.FromString(payload.data)


def _usage(response: Message) -> Usage | None:
    """What the front counts of a response."""
    if isinstance(response, pb.TextResponse | pb.ChatResponse):
        return Usage(generation=response.usage) if response.done else None
    if isinstance(response, pb.GeneratedEmbeddingsResponse):
        texts = len(response.embeddings)
        return Usage(embedding=EmbeddingUsage(texts=texts, tokens=response.tokens))
    return None
