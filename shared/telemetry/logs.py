"""JSON logs that never block the service; each line has the request id of its call."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import logging
import logging.handlers
import queue
import sys
import zlib
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

from shared.text import MAX_TRACEBACK_CHARACTERS, cut, one_line, printable

# Lines that wait for the writer; if stdout is stuck, new lines are dropped instead of blocking.
MAX_WAITING_LINES = 10_000

_request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")


def request_id() -> str:
    """The id of the current call, empty outside of calls."""
    return _request_id.get()


def set_request_id(value: str) -> None:
    """Sets the request id of the log lines of this task, cut and cleaned."""
    _request_id.set(printable(value))


def is_logged(share: float) -> bool:
    """Whether the current call is among the share of those that are logged, by its request id."""
    return zlib.crc32(request_id().encode()) < share * 2**32


class _DroppingQueueHandler(logging.handlers.QueueHandler):
    """Passes lines to the writer thread; drops them if it is stuck."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record.request_id = request_id()
        return record  # same process: the traceback need not be formatted here

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


class _JsonFormatter(JsonFormatter):
    """Lines of JSON, whose texts are cut: a caller may have written them."""

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        for key, value in log_data.items():
            if isinstance(value, str):
                log_data[key] = (
                    cut(value, MAX_TRACEBACK_CHARACTERS) if key == "exc_info" else cut(value)
                )
        return log_data


class _TextFormatter(logging.Formatter):
    """Lines of text, with the message on one of them and cut."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = one_line(cut(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return cut(super().formatException(ei), MAX_TRACEBACK_CHARACTERS)


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
            _JsonFormatter(
                "%(asctime)s %(levelname)s %(name)s %(message)s %(request_id)s",
                rename_fields={"asctime": "ts", "levelname": "level", "name": "logger"},
                static_fields={"service": service},
            )
        )
    else:
        writer.setFormatter(
            _TextFormatter(f"%(asctime)s %(levelname)s {service} %(name)s: %(message)s")
        )
    lines: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING_LINES)
    listener = logging.handlers.QueueListener(lines, writer)
    root = logging.getLogger()
    root.handlers[:] = [_DroppingQueueHandler(lines)]
    root.setLevel(level.upper())
    listener.start()
    atexit.register(listener.stop)
