"""JSON lines to and from a child process, on the event loop, without ever blocking it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

READ_BYTES = 1 << 20


class Lines:
    """A conversation with a process over its stdin and stdout, from within one event loop.

    Args:
        stdin, stdout: file descriptors of this side of the pipes.
        on_message: called with each message.
        on_end: called once when the process has closed its side.
    """

    def __init__(
        self,
        stdin: int,
        stdout: int,
        on_message: Callable[[dict[str, Any]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._stdin, self._stdout = stdin, stdout
        self._on_message, self._on_end = on_message, on_end
        self._unread, self._unsent = b"", bytearray()
        self._loop = asyncio.get_running_loop()
        for descriptor in (stdin, stdout):
            os.set_blocking(descriptor, False)
        self._loop.add_reader(stdout, self._read)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; what the pipe does not take now goes later."""
        if not self._unsent:
            self._loop.add_writer(self._stdin, self._write)
        self._unsent += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self._write()

    def close(self) -> None:
        """Stops reading and writing; the descriptors stay open."""
        self._loop.remove_reader(self._stdout)
        self._loop.remove_writer(self._stdin)

    def _write(self) -> None:
        try:
            del self._unsent[: os.write(self._stdin, self._unsent)]
        except BlockingIOError:
            return
        except OSError:  # its end is told by the other pipe
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._stdin)

    def _read(self) -> None:
        try:
            block = os.read(self._stdout, READ_BYTES)
        except BlockingIOError:
            return
        if not block:
            self.close()
            self._on_end()
            return
        *lines, self._unread = (self._unread + block).split(b"\n")
        for line in lines:
            self._on_message(json.loads(line))
