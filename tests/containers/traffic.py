"""Callers that call all the time while something happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from tests.support.stack import wait_for

CALL_SECONDS = 120
# Between two calls: callers that leave no core to the containers make every start slow, and without
# any pause after a failure they soon meet Envoy's rate limits.
PAUSE_SECONDS = 0.3
SUCCESS_SECONDS = 180


class Caller(threading.Thread):
    """Makes one call after the other until it is told to stop, and keeps their outcomes."""

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
        seen = len(self.outcomes) + 1  # the one under way began before
        wait_for(
            "a call that succeeds",
            lambda: grpc.StatusCode.OK in self.outcomes[seen:],
            SUCCESS_SECONDS,
        )


@contextmanager
def traffic(*calls: Callable[[], None], each: int = 2) -> Iterator[list[Caller]]:
    """Callers that are all under way; at the end each finishes its call."""
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
