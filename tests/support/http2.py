"""Hand-written HTTP/2 frames, to send what client libraries refuse to send (RFC 9113)."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS = 0x1, 0x4
# Ways in which a caller ends its side before the message is whole: what the last frame holds.
CUT_CALLS = {"no message": b"", "half a prefix": b"\0\0", "half a message": b"\0\0\0\0\x09abc"}
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER = struct.Struct(">HBBBI")  # length (high 16 bits, low 8), type, flags, stream


@dataclass(frozen=True)
class Frame:
    """One frame that the server sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def ends_stream(self) -> bool:
        """Whether it is the last frame of its stream."""
        if self.kind == RST_STREAM:
            return True
        return self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM)


class RawConnection:
    """A client's connection that sends frames as they are given, each in a write of its own.

    Args:
        address: host:port.
        seconds: how long a read may take; a server that says nothing fails the test.
    """

    def __init__(self, address: str, seconds: float = 20.0) -> None:
        host, _, port = address.rpartition(":")
        self._held: bytearray | None = None
        self._socket = socket.create_connection((host, int(port)), timeout=seconds)
        self._socket.sendall(_PREFACE)
        self.send(SETTINGS, 0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    @contextlib.contextmanager
    def one_write(self) -> Iterator[None]:
        """Frames that are sent inside leave together, so that the server cannot answer between."""
        self._held = bytearray()
        yield
        held, self._held = self._held, None
        self._socket.sendall(held)

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        """Sends a frame of any kind."""
        length = len(payload)
        frame = _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload
        if self._held is None:
            self._socket.sendall(frame)
        else:
            self._held += frame

    def open_call(self, stream: int, path: str, authority: str = "localhost") -> None:
        """Sends the headers of a gRPC call."""
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": authority,
            "content-type": "application/grpc",
            "te": "trailers",
        }
        self.send(HEADERS, END_HEADERS, stream, b"".join(map(_literal, headers.items())))

    def send_message(self, stream: int, message: bytes, *, flags: int = 0) -> None:
        """Sends a gRPC message in a frame of its own."""
        self.send(DATA, flags, stream, struct.pack(">BI", 0, len(message)) + message)

    def frames(self) -> Iterator[Frame]:
        """What the server sends until it ends the connection. Nothing is acknowledged."""
        with contextlib.suppress(ConnectionError):
            while header := self._read(_HEADER.size):
                high, low, kind, flags, stream = _HEADER.unpack(header)
                yield Frame(kind, flags, stream & 0x7FFF_FFFF, self._read(high << 8 | low))

    def status(self, stream: int) -> tuple[str, str]:
        """Reads to the end of a call; returns its grpc-status and grpc-message.

        For the first call of a connection to a service: these send headers as they are (RFC 7541,
        6.2), while Envoy compresses them.

        Raises:
            TimeoutError: the server says nothing.
            ConnectionError: the connection ends.
        """
        for frame in self.frames():
            if frame.stream == stream and frame.ends_stream:
                status = _value(frame.payload, b"grpc-status")
                return status, _value(frame.payload, b"grpc-message")
        raise ConnectionError("the connection ended before the call")

    def _read(self, size: int) -> bytes:
        """Exactly that many bytes, or none at the end."""
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                return b""
            data += more
        return data


def cut_call(address: str, path: str, end: str) -> tuple[str, str]:
    """The status code and message of a call that ends in one of the ways of `CUT_CALLS`.

    Raises:
        TimeoutError: there is no answer.
    """
    with RawConnection(address) as connection:
        connection.open_call(1, path)
        connection.send(DATA, END_STREAM, 1, CUT_CALLS[end])
        return connection.status(1)


def _literal(header: tuple[str, str]) -> bytes:
    """A literal header field, which needs no table (RFC 7541, 6.2.2)."""
    name, value = (text.encode() for text in header)
    assert max(len(name), len(value)) < 127
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _value(block: bytes, name: bytes) -> str:
    """The value of a literal header in a header block; "" if it is not there."""
    _, found, rest = block.partition(name)
    return rest[1 : 1 + rest[0]].decode() if found else ""
