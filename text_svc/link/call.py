"""One call, as one end of the link sees it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import NamedTuple

from ml.internal.link_pb2 import Ended, Envelope, Usage
from shared.errors import InternalError
from text_svc.link.framing import EnvelopeProtocol

# Bytes of a call's messages, one way, that may be in flight or wait to be read. A message may be
# sent while fewer are, however long it is itself.
WINDOW_BYTES = 1 << 20


class Payload(NamedTuple):
    """A serialised request or response.

    Attributes:
        data: the bytes of the message.
        usage: of a response: what it adds to the metrics of text_svc.
        done: of a response: that it is the last, and the call has succeeded.
    """

    data: bytes
    usage: Usage | None = None
    done: bool = False


class Call:
    """The messages of a call, in both directions.

    Args:
        connection: carries the envelopes.
        number: identifies the call on that connection.

    Attributes:
        timer: what ends the call when it takes too long, at the end that makes it.
    """

    def __init__(self, connection: EnvelopeProtocol, number: int) -> None:
        self._connection = connection
        self.number = number
        self.timer: asyncio.TimerHandle | None = None
        self._inbox: deque[Payload] = deque()
        self._news = asyncio.Event()
        self._finished = False
        self._failure: Exception | None = None
        self._unreturned = 0
        self._in_flight = 0
        self._room = asyncio.Event()

    @property
    def finished(self) -> bool:
        """Whether the other end sends no more messages."""
        return self._finished

    def receive(self, envelope: Envelope) -> None:
        """Takes an envelope of this call from the other end."""
        if envelope.credit:
            self._in_flight -= envelope.credit
            self._room.set()
        ended = envelope.HasField("ended")
        if envelope.HasField("message"):
            usage = envelope.usage if envelope.HasField("usage") else None
            self._inbox.append(Payload(envelope.message, usage, ended))
        if envelope.last or ended:
            self._finished = True
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Makes `payloads` raise an error, unless the call has finished already."""
        if not self._finished:
            self._finished, self._failure = True, error
            self._news.set()

    async def payloads(self) -> AsyncGenerator[Payload, None]:
        """Yields the messages from the other end, until it sends no more.

        Raises:
            Exception: the one that `fail` was given.
        """
        while True:
            while self._inbox:
                payload = self._inbox.popleft()
                self._return_credit(len(payload.data))
                yield payload
            if self._finished:
                break
            self._news.clear()
            await self._news.wait()
        if self._failure is not None:
            raise self._failure

    async def payload(self) -> Payload:
        """The message from the other end, of a call that has one.

        Raises:
            Exception: the one that `fail` was given.
            InternalError: the call has ended without a message.
        """
        while not self._inbox:
            if self._finished:
                raise self._failure or InternalError(
                    "a model's process has ended a call unanswered"
                )
            self._news.clear()
            await self._news.wait()
        return self._inbox.popleft()

    async def send(self, message: bytes, usage: Usage | None = None) -> None:
        """Sends a message, once fewer than `WINDOW_BYTES` are in flight."""
        while self._in_flight >= WINDOW_BYTES:
            self._room.clear()
            await self._room.wait()
        self._in_flight += len(message)
        self._connection.send(Envelope(call=self.number, message=message, usage=usage))

    def begin(self, envelope: Envelope) -> None:
        """Sends the first envelope of the call."""
        envelope.call = self.number
        self._in_flight += len(envelope.message)
        self._connection.send(envelope)

    def last(self) -> None:
        """Says that no more messages follow."""
        self._connection.send(Envelope(call=self.number, last=True))

    def cancel(self) -> None:
        """Says that nobody waits for the call any more."""
        self._connection.send(Envelope(call=self.number, cancel=True))

    def end(self, ended: Ended, message: bytes | None = None, usage: Usage | None = None) -> None:
        """Ends the call, with a last message if there is one."""
        self._connection.send(Envelope(call=self.number, message=message, ended=ended, usage=usage))

    def _return_credit(self, size: int) -> None:
        self._unreturned += size
        # Credit goes back per half window, so short messages cost no extra envelope.
        if self._unreturned >= WINDOW_BYTES // 2 and not self._finished:
            self._connection.send(Envelope(call=self.number, credit=self._unreturned))
            self._unreturned = 0
