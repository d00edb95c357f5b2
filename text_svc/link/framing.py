"""Frames over a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ml.internal.link_pb2 import Frame

_LENGTH_BYTES = 4


class FrameProtocol(asyncio.Protocol):
    """Frames both ways.

    Args:
        receive: called with each frame that comes.
        closed: called once, when the connection has ended.
    """

    def __init__(self, receive: Callable[[Frame], None], closed: Callable[[], None]) -> None:
        self._receive = receive
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._incoming = bytearray()
        self._outgoing: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

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
            frame = Frame.FromString(bytes(self._incoming[first:end]))
            begin = end
            self._receive(frame)
        del self._incoming[:begin]

    def send(self, frame: Frame) -> None:
        """Sends a frame at the end of this turn of the loop; nothing once the connection ended."""
        if self._transport is None:
            return
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        data = frame.SerializeToString()
        self._outgoing += (len(data).to_bytes(_LENGTH_BYTES, "big"), data)

    def close(self) -> None:
        """Ends the connection, after what was sent before."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self._transport is not None:
            self._transport.write(b"".join(outgoing))
