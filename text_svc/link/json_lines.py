"""JSON lines over the stdin and stdout of a child process, one object a line.

`JsonLines` is the end of a process with an event loop, `BlockingJsonLines` that of its child.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
from collections import deque
from collections.abc import Callable
from typing import Any

READ_BYTES = 1 << 20
# Largest line that is taken unless the caller names another limit.
MAX_LINE_BYTES = 64 << 20


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class JsonLines:
    """A conversation with a child process that never blocks the event loop.

    Args:
        stdin: file descriptor of this side of the child's stdin.
        stdout: the same of its stdout.
        on_message: called with each message.
        on_end: called once, when the child has closed its side, or sent a line that is too long or
            is not JSON.
    """

    def __init__(
        self,
        stdin: int,
        stdout: int,
        on_message: Callable[[dict[str, Any]], None],
        on_end: Callable[[], None],
        *,
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        self._stdin, self._stdout = stdin, stdout
        self._on_message, self._on_end = on_message, on_end
        self._max_line_bytes = max_line_bytes
        self._unread, self._unsent = bytearray(), bytearray()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        for descriptor in (stdin, stdout):
            os.set_blocking(descriptor, False)
        self._loop.add_reader(stdout, self._read)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message at the end of this turn of the event loop, or once the pipe takes it.

        So the child finds all messages of a turn at once: what it begins with the first one has
        the others in it.
        """
        if not self._unsent:
            self._loop.call_soon(self._write_all)
        self._unsent += _encoded(message)

    def close(self) -> None:
        """Stops reading and writing; the descriptors stay open."""
        self._closed = True
        self._loop.remove_reader(self._stdout)
        self._loop.remove_writer(self._stdin)

    def _write_all(self) -> None:
        if self._closed:
            return
        self._write()
        if self._unsent:
            self._loop.add_writer(self._stdin, self._write)

    def _write(self) -> None:
        try:
            del self._unsent[: os.write(self._stdin, self._unsent)]
        except BlockingIOError:
            return
        except OSError:  # the child has ended, which the other pipe tells
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._stdin)

    def _read(self) -> None:
        try:
            block = os.read(self._stdout, READ_BYTES)
        except BlockingIOError:
            return
        self._unread += block
        if not block or len(self._unread) > self._max_line_bytes + READ_BYTES:
            self._end()
        elif b"\n" in block:
            *lines, rest = self._unread.split(b"\n")
            self._unread = rest
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:
                    self._end()
                    return
                self._on_message(message)

    def _end(self) -> None:
        self.close()
        self._on_end()


class BlockingJsonLines:
    """The same from within the child, in one thread.

    From here on, what libraries print goes to stderr, since it is not part of the conversation.

    Attributes:
        ended: whether the parent has closed its side.
    """

    def __init__(self) -> None:
        self.ended = False
        self._rest = b""
        self._lines: deque[bytes] = deque()
        self._out = os.dup(1)
        os.dup2(2, 1)

    def receive(self, *, wait: bool = True) -> dict[str, Any] | None:
        """The next message; None if the parent has closed its side.

        Args:
            wait: for a message to arrive; if not, None also means that none is there.
        """
        while not self._lines:
            if not wait and not select.select([0], [], [], 0)[0]:
                return None
            block = os.read(0, READ_BYTES)
            if not block:
                self.ended = True
                return None
            *lines, self._rest = (self._rest + block).split(b"\n")
            self._lines += lines
        message: dict[str, Any] = json.loads(self._lines.popleft())
        return message

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message, and waits until the pipe has taken it."""
        line = _encoded(message)
        while line:
            line = line[os.write(self._out, line) :]
