"""JSON logs that never block the service; each line has the request id of its call."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import logging
import logging.handlers
import queue
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

# Lines that wait for the writer; if stdout is stuck, new lines are dropped instead of blocking.
MAX_WAITING_LINES = 10_000

_request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")


def request_id() -> str:
    """The id of the current call, empty outside of calls."""
    return _request_id.get()


def set_request_id(value: str) -> None:
    """Sets the request id of the log lines of this task."""
    _request_id.set(value)


class _DroppingQueueHandler(logging.handlers.QueueHandler):
    """Passes lines to the writer thread; drops them if it is stuck."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record.request_id = request_id()
        return record  # same process: the traceback need not be formatted here

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


def configure(service: str, level: str = "INFO", style: Literal["json", "text"] = "json") -> None:
    """Writes all logs to stdout in a thread, each as a JSON object or a line of text.

    Args:
        service: the value of the field `service` in every line.
        level: name of the lowest level that is written.
        style: "json" for machines, "text" for people.
    """
    writer = logging.StreamHandler(sys.stdout)
    if style == "json":
        writer.setFormatter(
            JsonFormatter(
                "%(asctime)s %(levelname)s %(name)s %(message)s %(request_id)s",
                rename_fields={"asctime": "ts", "levelname": "level", "name": "logger"},
                static_fields={"service": service},
            )
        )
    else:
        writer.setFormatter(
            logging.Formatter(f"%(asctime)s %(levelname)s {service} %(name)s: %(message)s")
        )
    lines: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING_LINES)
    listener = logging.handlers.QueueListener(lines, writer)
    root = logging.getLogger()
    root.handlers[:] = [_DroppingQueueHandler(lines)]
    root.setLevel(level.upper())
    listener.start()
    atexit.register(listener.stop)
