"""The thread of a model, or its threads, and the queue in front of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from shared.caller import Weights, caller, priority
from shared.errors import ServiceError
from shared.places import Place, Places
from shared.turns import TurnThreads
from text_svc.worker.steps import Steps
from text_svc.worker.tokenizing import Watched

Result = TypeVar("Result")


class CancelEvent(threading.Event):
    """Set when the caller has gone. The work looks at it between two steps, which are counted."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self._steps = steps

    def is_set(self) -> bool:
        self._steps.done()
        return super().is_set()


class ModelThread:
    """One thread, in which a model's calls run one at a time; their callers take turns.

    Args:
        max_waiting: calls that may wait; one more is refused.
        running: calls that run at once, each in a thread of its own, for a model that can.
        weights: of callers.
    """

    def __init__(self, max_waiting: int, running: int = 1, weights: Weights | None = None) -> None:
        run = "one call runs" if running == 1 else f"{running} calls run"
        self._places = Places(
            max_waiting + running,
            f"{run} and {max_waiting} wait, which is the limit",
            weights=weights or {},
        )
        self._steps = Steps()
        self._thread = TurnThreads(running, "infer", weights)

    async def run(self, work: Callable[[threading.Event], Result]) -> Result:
        """Runs `work` with an event that is set when its caller has gone.

        Raises:
            QueueFullError: too many calls wait already, or this one has waited and left its place
                to another caller.
            InvalidArgumentError: the model's tokenizer takes too long for a text.
        """
        cancelled = CancelEvent(self._steps)
        loop = asyncio.get_running_loop()
        left: list[ServiceError] = []
        future: Future[Result] | None = None

        def leave(error: ServiceError) -> bool:
            if future is None or not future.cancel():
                return False  # it runs
            left.append(error)
            return True

        own_priority = priority()
        place = self._places.take(caller(), leave)
        self._steps.expect(self._places.taken)
        watched = Watched(work)
        future = self._thread.submit(place.caller, lambda: watched(cancelled), own_priority)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._on_done, place))
        try:
            return await watched.result(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if left:
                raise left.pop() from None
            raise
        finally:
            cancelled.set()
            future = None  # it has the place among its callbacks, and an error has this frame

    def _on_done(self, place: Place) -> None:
        self._places.free(place)
        self._steps.done()
        self._steps.expect(self._places.taken)
