"""The front's end of the link: makes calls."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from ml.internal.link_pb2 import Begin, Ended, Envelope, MemoryFigures
from shared.errors import InternalError, ServiceError
from shared.rpc.status import from_packed
from text_svc.link.call import Call, Payload
from text_svc.link.framing import EnvelopeProtocol

log = logging.getLogger(__name__)


class Link:
    """A connection to a model's process. Make it with `connect`.

    Args:
        gone: makes the error of calls whose connection has ended.
        learn_end: waited for before that; it finds out why the connection has ended.

    Attributes:
        unanswered: pings since the last answer to one.
        stuck: of that answer, see `Beat` in link.proto.
    """

    def __init__(
        self,
        gone: Callable[[], ServiceError],
        learn_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._gone = gone
        self._learn_end = learn_end
        self._failing: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._open = True
        self.unanswered = 0
        self.stuck = 0
        self._measuring: asyncio.Future[MemoryFigures] | None = None
        self._connection = EnvelopeProtocol(self._receive, self._closed)

    @classmethod
    async def connect(
        cls,
        path: Path,
        gone: Callable[[], ServiceError],
        learn_end: Callable[[], Awaitable[None]] | None = None,
    ) -> Link:
        """Connects to the process that listens on a Unix socket.

        Raises:
            OSError: nothing listens there.
        """
        link = cls(gone, learn_end)
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: link._connection, str(path))
        return link

    async def call(
        self,
        method: str,
        requests: bytes | AsyncIterator[bytes],
        *,
        metadata: Mapping[str, str],
        timeout: float | None = None,
    ) -> AsyncGenerator[Payload, None]:
        """Calls a method and yields its responses. Closing the generator stops the work.

        Args:
            method: name of an RPC of ml.TransformersService.
            requests: the one request, or a stream of them, serialised.
            metadata: of the call, such as its request id.
            timeout: seconds that the call may take; None is no limit.

        Raises:
            ServiceError: the error that the method raised in the model's process, or the one that
                `gone` makes when the connection has ended.
            TimeoutError: the call took too long.
        """
        call = await self._call(timeout)
        begin = Begin(method=method, metadata=metadata)
        sending: asyncio.Task[None] | None = None
        if isinstance(requests, bytes):
            call.begin(Envelope(begin=begin, message=requests, last=True))
        else:
            call.begin(Envelope(begin=begin))
            sending = asyncio.create_task(_send(requests, call))
        try:
            async with aclosing(call.payloads()) as responses:
                async for response in responses:
                    yield response
        finally:
            self._leave(call)
            if sending:
                sending.cancel()
                await asyncio.wait({sending})

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Mapping[str, str],
        timeout: float | None = None,
    ) -> Payload:
        """Calls a method with one request and one response; see `call`.

        Cancelling it stops the work.
        """
        call = await self._call(timeout)
        call.begin(
            Envelope(begin=Begin(method=method, metadata=metadata), message=request, last=True)
        )
        try:
            return await call.payload()
        finally:
            self._leave(call)

    async def _call(self, timeout: float | None) -> Call:
        """A new call, which fails after the timeout; `_leave` ends it."""
        if not self._open:
            if self._failing:
                await asyncio.wait({self._failing})
            raise self._gone()
        number = next(self._numbers)
        call = self._calls[number] = Call(self._connection, number)
        if timeout is not None:
            loop = asyncio.get_running_loop()
            call.timer = loop.call_later(timeout, call.fail, TimeoutError())
        return call

    def _leave(self, call: Call) -> None:
        """Forgets a call; if it has not ended, the process is told that nobody waits for it."""
        if call.timer:
            call.timer.cancel()
        if self._calls.pop(call.number, None):
            call.cancel()

    def ping(self) -> None:
        """Sends a heartbeat; its answer changes `unanswered` and `stuck`."""
        self.unanswered += 1
        self._connection.send(Envelope(ping=True))

    async def measure(self) -> MemoryFigures:
        """Asks the process for its memory figures.

        Never returns if the process does not answer; give it a time limit.
        """
        if self._measuring is None:
            self._measuring = asyncio.get_running_loop().create_future()
            self._connection.send(Envelope(measure=True))
        return await asyncio.shield(self._measuring)

    def close(self) -> None:
        """Ends the connection and its calls."""
        self._connection.close()

    def abort(self) -> None:
        """The same, though the process may take nothing any more."""
        self._connection.abort()

    def _receive(self, envelope: Envelope) -> None:
        call = self._calls.get(envelope.call)
        if call is None:
            if envelope.HasField("beat"):
                self.unanswered, self.stuck = 0, envelope.beat.stuck
            if envelope.HasField("memory") and self._measuring:
                self._measuring.set_result(envelope.memory)
                self._measuring = None
            return  # else it has been cancelled
        if envelope.HasField("ended"):
            del self._calls[envelope.call]
            if envelope.ended.code:
                call.fail(_error(envelope.ended))
        call.receive(envelope)

    def _closed(self) -> None:
        self._open = False
        if self._learn_end is None:
            self._fail_calls()
        else:
            self._failing = asyncio.create_task(self._fail_calls_later(self._learn_end))

    async def _fail_calls_later(self, learn_end: Callable[[], Awaitable[None]]) -> None:
        try:
            await learn_end()
        except Exception:
            log.exception("cannot find out how a model's process has ended")
        finally:
            self._fail_calls()

    def _fail_calls(self) -> None:
        for call in self._calls.values():
            call.fail(self._gone())


def _error(ended: Ended) -> ServiceError:
    return from_packed(ended.details) or InternalError(ended.message)


async def _send(requests: AsyncIterator[bytes], call: Call) -> None:
    """Sends all requests; the call fails with whatever their source raises."""
    try:
        async for request in requests:
            await call.send(request)
    except Exception as error:  # noqa: BLE001  # any error of the source is the call's
        call.fail(error)
    else:
        call.last()
