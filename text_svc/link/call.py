"""One call, as one end of the link sees it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from ml.internal.link_pb2 import Ended, Frame
from text_svc.link.framing import FrameProtocol

# Bytes of a call's messages, one way, that may be on their way or wait to be taken. A message
# may begin below it, however long it is.
WINDOW_BYTES = 1 << 20


class Exchange:
    """The messages of a call, both ways.

    Args:
        frames: the connection.
        number: the call's.
    """

    def __init__(self, frames: FrameProtocol, number: int) -> None:
        self._frames = frames
        self._number = number
        self._came: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._over = False
        self._failure: Exception | None = None
        self._taken = 0
        self._under_way = 0
        self._room = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether the other end sends no more."""
        return self._over

    def receive(self, frame: Frame) -> None:
        """What the other end has sent of this call."""
        if frame.taken:
            self._under_way -= frame.taken
            self._room.set()
        if frame.HasField("message"):
            self._came.append(frame.message)
        if frame.last or frame.HasField("ended"):
            self._over = True
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Ends what comes with an error, unless it is over already."""
        if not self._over:
            self._over, self._failure = True, error
            self._news.set()

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """What comes, until it is over. Raises what `fail` was given."""
        while True:
            while self._came:
                message = self._came.popleft()
                self._took(len(message))
                yield message
            if self._over:
                break
            self._news.clear()
            await self._news.wait()
        if self._failure is not None:
            raise self._failure

    async def send(self, message: bytes) -> None:
        """Sends a message; waits first while the other end has not taken enough of the others."""
        while self._under_way >= WINDOW_BYTES:
            self._room.clear()
            await self._room.wait()
        self._under_way += len(message)
        self._frames.send(Frame(call=self._number, message=message))

    def begin(self, frame: Frame) -> None:
        """Sends the call's first frame."""
        frame.call = self._number
        self._under_way += len(frame.message)
        self._frames.send(frame)

    def last(self) -> None:
        """Says that no message follows."""
        self._frames.send(Frame(call=self._number, last=True))

    def cancel(self) -> None:
        """Says that nobody waits for the call any more."""
        self._frames.send(Frame(call=self._number, cancel=True))

    def end(self, ended: Ended, message: bytes | None = None) -> None:
        """Ends the call, with a last message if there is one to send."""
        self._frames.send(Frame(call=self._number, message=message, ended=ended))

    def _took(self, size: int) -> None:
        self._taken += size
        # Told in halves of the window: a stream of short messages is never worth a frame.
        if self._taken >= WINDOW_BYTES // 2 and not self._over:
            self._frames.send(Frame(call=self._number, taken=self._taken))
            self._taken = 0
