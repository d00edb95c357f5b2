"""Ends a process whose event loop stands still, so that its supervisor starts it again."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from shared.process import thread_tracebacks

log = logging.getLogger(__name__)

# Looks of the thread within the limit. They are counted, and no clock is read: a process on a
# machine that was asleep has not stood still.
LOOKS = 6
# For the writer of the log, before the process ends.
_LOG_SECONDS = 0.5


def end_process() -> None:
    """Logs where all threads are, and ends the process at once: nothing can be drained."""
    log.error(
        "the event loop stands still: this process ends, to be started again",
        extra={"tracebacks": thread_tracebacks()},
    )
    time.sleep(_LOG_SECONDS)
    os._exit(1)


class LoopWatch:
    """Watches the event loop that runs, from a thread. A context manager.

    Args:
        seconds: how long it may stand still.
        on_stall: called in the thread, once.
    """

    def __init__(self, seconds: float, on_stall: Callable[[], None] = end_process) -> None:
        self._interval = seconds / LOOKS
        self._on_stall = on_stall
        self._turned = threading.Event()
        self._left = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._watch, name="loop watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()

    def _watch(self) -> None:
        self._turned.set()
        still = 0
        while not self._left.wait(self._interval):
            if self._turned.is_set():
                still = 0
                self._turned.clear()
                self._loop.call_soon_threadsafe(self._turned.set)
                continue
            still += 1
            if still == LOOKS:
                self._on_stall()
                return
