"""Envelopes over a connection: four bytes of length, big endian, then the message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from ml.internal.link_pb2 import Envelope

_LENGTH_BYTES = 4


class EnvelopeProtocol(asyncio.Protocol):
    """Sends and receives envelopes.

    Args:
        receive: called with each envelope that arrives.
        closed: called once, when the connection has ended.
    """

    def __init__(self, receive: Callable[[Envelope], None], closed: Callable[[], None]) -> None:
        self._receive = receive
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._incoming = bytearray()
        self._outgoing: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closed()

    def data_received(self, data: bytes) -> None:
        self._incoming += data
        begin = 0
        while (first := begin + _LENGTH_BYTES) <= len(self._incoming):
            end = first + int.from_bytes(self._incoming[begin:first], "big")
            if end > len(self._incoming):
                break
            envelope = Envelope.FromString(bytes(self._incoming[first:end]))
            begin = end
            self._receive(envelope)
        del self._incoming[:begin]

    def send(self, envelope: Envelope) -> None:
        """Sends an envelope at the end of this turn of the event loop.

        Does nothing once the connection has ended.
        """
        if self._transport is None:
            return
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        data = envelope.SerializeToString()
        self._outgoing += (len(data).to_bytes(_LENGTH_BYTES, "big"), data)

    def close(self) -> None:
        """Sends what is waiting, then ends the connection."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Ends the connection at once, even if the other end takes nothing any more."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self._transport is not None:
            self._transport.write(b"".join(outgoing))
