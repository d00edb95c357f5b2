"""Callers that keep calling while something happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from tests.support.stack import wait_for

CALL_SECONDS = 120
# Between two calls: callers that leave the containers no core slow every start down, and without a
# pause after failures they soon run into Envoy's rate limits.
PAUSE_SECONDS = 0.3
SUCCESS_SECONDS = 180


class Caller(threading.Thread):
    """Makes one call after another until it is told to stop, and records their outcomes."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.outcomes: list[grpc.StatusCode] = []
        self.finished = threading.Event()

    def run(self) -> None:
        while not self.finished.is_set():
            try:
                self.call()
                self.outcomes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                self.outcomes.append(error.code())
            time.sleep(PAUSE_SECONDS)

    def wait_for_success(self) -> None:
        """Waits until a call that began after this moment has succeeded."""
        seen = len(self.outcomes) + 1  # the call in flight began before
        wait_for(
            "a call that succeeds",
            lambda: grpc.StatusCode.OK in self.outcomes[seen:],
            SUCCESS_SECONDS,
        )


@contextmanager
def traffic(*calls: Callable[[], None], each: int = 2) -> Iterator[list[Caller]]:
    """Callers that have all succeeded once; at the end each finishes its call."""
    callers = [Caller(call) for call in calls for _ in range(each)]
    for caller in callers:
        caller.start()
    try:
        for caller in callers:
            caller.wait_for_success()
        yield callers
    finally:
        for caller in callers:
            caller.finished.set()
        for caller in callers:
            caller.join(CALL_SECONDS)
