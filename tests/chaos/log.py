"""What a run of faults writes down: an event a line, as JSON."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Log:
    """Collects events from any thread, and writes them to a file.

    Args:
        path: the file; what was in it is gone.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("w")
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def now(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self._start

    def add(self, what: str, **fields: Any) -> None:
        """Adds an event: what it is, when it was noted, and its fields."""
        event = {"what": what, "at": round(self.now(), 3), **fields}
        with self._lock:
            self._events.append(event)
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()

    def events(self) -> list[Event]:
        """All events so far."""
        with self._lock:
            return list(self._events)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read(lines: Iterable[str]) -> list[Event]:
    """The events of a file."""
    return [json.loads(line) for line in lines if line.strip()]
