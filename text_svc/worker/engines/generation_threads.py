"""Generations in threads, for engines that run each of them in a call of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from shared.turns import TurnThreads
from text_svc.worker.engines.base import Generation, Limits
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.steps import Steps


class GenerationThreads:
    """As many threads as generations may run at once; the others wait, and callers take turns.

    For the event loop.

    Args:
        limits: of the engine.
        name: of the threads.
        metrics: of the model.

    Attributes:
        steps: tell that a generation goes on; what runs in the threads reports them.
    """

    def __init__(self, limits: Limits, name: str, metrics: EngineMetrics) -> None:
        self.steps = Steps()
        self._limits = limits
        self._metrics = metrics
        self._threads = TurnThreads(limits.running, name, limits.weights)
        self._active: dict[Generation, tuple[Callable[[], None], Future[None]]] = {}
        self._unfinished = 0

    def submit(
        self, generation: Generation, run: Callable[[], None], cancel: Callable[[], None]
    ) -> None:
        """Runs a generation when it is its caller's turn.

        Args:
            generation: the key for `cancel`.
            run: blocks until the generation has ended.
            cancel: makes `run` return soon, or do nothing; called at most once.
        """
        loop = asyncio.get_running_loop()
        self._unfinished += 1
        future = self._threads.submit(generation.caller, run, generation.priority)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._on_done, generation))
        self._active[generation] = cancel, future
        self._count()

    def cancel(self, generation: Generation) -> None:
        """Ends a generation, or takes it out of the queue; nothing if it has ended."""
        if active := self._active.pop(generation, None):
            cancel, future = active
            cancel()
            future.cancel()  # removes it from the queue if it has not started
            self._count()

    async def close(self) -> None:
        """Ends all generations and waits for the threads."""
        for generation in list(self._active):
            self.cancel(generation)
        await asyncio.to_thread(self._threads.shutdown)

    def _on_done(self, generation: Generation) -> None:
        self._unfinished -= 1
        self._active.pop(generation, None)
        self._count()

    def _count(self) -> None:
        running = min(len(self._active), self._limits.running)
        waiting = len(self._active) - running
        self._metrics.generations(running, waiting, self._threads.callers)
        # A step that hangs is to be noticed even if its callers have all gone.
        self.steps.expect(self._unfinished)
