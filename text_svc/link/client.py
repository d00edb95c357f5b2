"""text_svc's end of the link."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from ml.internal.link_pb2 import Begin, Ended, Frame
from shared.errors import ServiceError
from text_svc.link.call import Exchange
from text_svc.link.framing import FrameProtocol


class RemoteError(Exception):
    """A call has failed in the model's process.

    Attributes:
        ended: the status, as that told it.
    """

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.message)
        self.ended = ended


class Link:
    """A connection to a model's process. Make it with `connect`.

    Args:
        gone: makes the error of calls whose connection has ended.
    """

    def __init__(self, gone: Callable[[], ServiceError]) -> None:
        self._gone = gone
        self._numbers = itertools.count(1)
        self._calls: dict[int, Exchange] = {}
        self._open = True
        self._frames = FrameProtocol(self._receive, self._closed)

    @classmethod
    async def connect(cls, path: Path, gone: Callable[[], ServiceError]) -> Link:
        """Connects to the process that listens on a Unix socket.

        Raises:
            OSError: none does.
        """
        link = cls(gone)
        await asyncio.get_running_loop().create_unix_connection(lambda: link._frames, str(path))
        return link

    async def call(
        self,
        method: str,
        requests: bytes | AsyncIterator[bytes],
        *,
        metadata: Mapping[str, str],
        timeout: float | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Calls a method and yields its answers. Closing the generator stops the work.

        Args:
            method: of ml.TransformersService.
            requests: the one request, or all of them.
            metadata: of the call, such as its request id.
            timeout: seconds that the call has; None is no limit.

        Raises:
            RemoteError: the call failed there.
            TimeoutError: it took too long.
            ServiceError: the connection has ended; what `gone` made.
        """
        if not self._open:
            raise self._gone()
        number = next(self._numbers)
        exchange = self._calls[number] = Exchange(self._frames, number)
        loop = asyncio.get_running_loop()
        timer = None
        if timeout is not None:
            timer = loop.call_later(timeout, exchange.fail, TimeoutError())
        begin = Begin(method=method, metadata=metadata)
        sending: asyncio.Task[None] | None = None
        if isinstance(requests, bytes):
            exchange.begin(Frame(begin=begin, message=requests, last=True))
        else:
            exchange.begin(Frame(begin=begin))
            sending = asyncio.create_task(_send(requests, exchange))
        try:
            async with aclosing(exchange.messages()) as answers:
                async for answer in answers:
                    yield answer
        finally:
            if timer:
                timer.cancel()
            if self._calls.pop(number, None):
                exchange.cancel()
            if sending:
                sending.cancel()
                await asyncio.wait({sending})

    def close(self) -> None:
        """Ends the connection and its calls."""
        self._frames.close()

    def _receive(self, frame: Frame) -> None:
        exchange = self._calls.get(frame.call)
        if exchange is None:
            return  # of a call that was cancelled meanwhile
        if frame.HasField("ended"):
            del self._calls[frame.call]
            if frame.ended.code:
                exchange.fail(RemoteError(frame.ended))
        exchange.receive(frame)

    def _closed(self) -> None:
        self._open = False
        for exchange in self._calls.values():
            exchange.fail(self._gone())


async def _send(requests: AsyncIterator[bytes], exchange: Exchange) -> None:
    """Sends all requests; the call fails with what their source raises."""
    try:
        async for request in requests:
            await exchange.send(request)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the call's
        exchange.fail(error)
    else:
        exchange.last()
