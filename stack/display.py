"""The runner's output: a live table on a terminal, elsewhere a line for each change.

Nothing here blocks or fails: lines for a pipe that is not read are dropped, as are all for a closed
one.
"""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

from stack.child import Child

if TYPE_CHECKING:
    from rich.table import Table

_MAX_WAITING_CHUNKS = 200


class NonBlockingOutput:
    """Writes to a file descriptor without blocking; buffers a little and drops the rest."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque(maxlen=_MAX_WAITING_CHUNKS)
        # A pipe that is reported writable takes PIPE_BUF bytes without blocking.
        self._chunk = select.PIPE_BUF

    def write(self, text: str) -> int:
        data = text.encode(errors="replace")
        self._waiting.extend(
            data[start : start + self._chunk] for start in range(0, len(data), self._chunk)
        )
        self.flush()
        return len(text)

    def flush(self) -> None:
        try:
            while self._waiting and select.select((), (self._descriptor,), (), 0)[1]:
                written = os.write(self._descriptor, self._waiting[0])
                rest = self._waiting.popleft()[written:]
                if rest:
                    self._waiting.appendleft(rest)
        except (OSError, ValueError):
            self._waiting.clear()

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor


class Display(Protocol):
    """Where the runner reports events and states."""

    def say(self, sentence: str) -> None:
        """Reports one event."""

    def show(self, children: Sequence[Child]) -> None:
        """Shows the state of all processes; cheap when nothing changed."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


class PlainDisplay:
    """A line for every event and every change of a state."""

    def __init__(self, output: NonBlockingOutput) -> None:
        self._output = output
        self._shown: dict[str, str] = {}

    def say(self, sentence: str) -> None:
        self._output.write(sentence + "\n")

    def show(self, children: Sequence[Child]) -> None:
        for child in children:
            line = f"{child.spec.name:<14} {child.state:<11} {describe(child)}"
            if self._shown.get(child.spec.name) != line:
                self._shown[child.spec.name] = line
                self.say(line.rstrip())
        self._output.flush()

    def close(self) -> None:
        self._output.flush()


class LiveDisplay:
    """A table that is redrawn when something has changed, with events above it."""

    def __init__(self, output: NonBlockingOutput, header: str) -> None:
        from rich.console import Console
        from rich.live import Live

        stream: TextIO = output  # type: ignore[assignment]  # rich uses only these four methods
        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._header = header
        self._shown: list[tuple[str, str]] = []
        self._live.start()

    def say(self, sentence: str) -> None:
        from rich.text import Text

        self._console.print(Text(sentence))

    def show(self, children: Sequence[Child]) -> None:
        rows = [(child.state, describe(child)) for child in children]
        if rows != self._shown:
            self._shown = rows
            self._live.update(self._table(children), refresh=True)

    def _table(self, children: Sequence[Child]) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self._header, title_justify="left", box=None, pad_edge=False)
        for column in ("process", "state", "where"):
            table.add_column(column)
        colours = {"serving": "green", "failed": "red"}
        for child in children:
            colour = colours.get(child.state, "yellow")
            table.add_row(child.spec.name, Text(child.state, colour), describe(child))
        return table

    def close(self) -> None:
        self._live.stop()


def describe(child: Child) -> str:
    """Ports and pid of a process, as text."""
    parts = [f"port {child.spec.port}"]
    if child.spec.metrics_port:
        parts.append(f"metrics {child.spec.metrics_port}")
    if child.pid is not None:
        parts.append(f"pid {child.pid}")
    return ", ".join(parts)


def open_display(header: str) -> Display:
    """The display that suits stdout."""
    output = NonBlockingOutput(1)
    if sys.stdout and output.isatty():
        return LiveDisplay(output, header)
    display = PlainDisplay(output)
    display.say(header)
    return display
