"""The batching engine: admission on the event loop, the model in a thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from shared.errors import InternalError
from shared.process import exit_if_out_of_memory
from shared.turns import Turns
from text_svc.worker.engines.base import (
    Generation,
    Limits,
    StepOutput,
)
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.torch_batch.decoder import (
    BatchDecoder,
    Result,
    needed,
)
from text_svc.worker.engines.torch_batch.forms import TorchForms
from text_svc.worker.engines.torch_batch.model import BatchModel
from text_svc.worker.steps import Steps

log = logging.getLogger(__name__)

Command = Callable[[], None]


class BatchEngine:
    """Continuous batching on torch.

    A generation starts when it is its caller's turn and the cache has room for it and all running
    ones at the longest final length among them, so none ever has to be interrupted. The event loop
    decides that and sends commands to the thread, which executes them between two steps.

    Args:
        model: its cache holds at least one generation of `limits.context` tokens.
        limits: see `Engine`.
        end_tokens: ids that end a generation.
        metrics: of the model.
        forms: of answers; needed with `response_format` among the limits' features.
    """

    def __init__(
        self,
        model: BatchModel,
        limits: Limits,
        end_tokens: Sequence[int],
        metrics: EngineMetrics,
        forms: TorchForms | None = None,
    ) -> None:
        self.limits = limits
        self._forms = forms
        self._cache = model.cache
        self._cache_tokens = model.cache.tokens
        self._decoder = BatchDecoder(model, end_tokens, limits.running + limits.extra)
        self._metrics = metrics
        self._steps = Steps()
        self._cancelling = 0
        self._waiting: Turns[Generation] = Turns(limits.weights)
        self._running: set[Generation] = set()
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, name="batch", daemon=True)
        self._thread.start()

    @property
    def cache_bytes(self) -> int:
        """Those of pages that were written; a device holds all from the start."""
        return self._cache.taken_bytes

    @property
    def cache_limit_bytes(self) -> int:
        """Those of the whole pool."""
        return self._cache.num_bytes

    async def give_back(self) -> None:
        """Gives back the pages of the cache, unless a generation has come meanwhile."""
        done = asyncio.get_running_loop().create_future()
        self._commands.put(partial(self._give_back, done))
        await done

    async def compile(self, form: Form) -> Any:
        assert self._forms is not None, "it is among the features"
        return await self._forms.compile(form)

    def submit(self, generation: Generation) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting.add(generation.caller, generation, generation.priority)
        self._admit()

    def cancel(self, generation: Generation) -> None:
        if generation in self._running:
            self._forget(generation)
            self._cancelling += 1
            self._commands.put(lambda: self._cancel(generation))
            self._admit()
        elif self._waiting.remove(generation.caller, generation):
            self._admit()

    async def close(self) -> None:
        if self._forms:
            await self._forms.close()
        self._commands.put(self._end)
        await asyncio.to_thread(self._thread.join)

    def _admit(self) -> None:
        while generation := self._waiting.first():
            own = self._waiting.running(generation.caller)
            if len(self._running) >= self.limits.running + (0 if own else self.limits.extra):
                break
            longest = max(map(needed, (generation, *self._running)))
            if longest * (len(self._running) + 1) > self._cache_tokens:
                break
            self._waiting.start()
            self._running.add(generation)
            generation.start()
            self._commands.put(lambda generation=generation: self._decoder.begin(generation))  # type: ignore[misc]
        self._metrics.generations(len(self._running), len(self._waiting), self._waiting.callers)
        # A step that hangs is to be noticed even if its callers have all gone.
        self._steps.expect(len(self._running) + len(self._waiting) + self._cancelling)

    def _on_results(self, results: Sequence[Result]) -> None:
        """Hands over the outputs of a step, except those of generations cancelled meanwhile."""
        if results:
            self._metrics.step(len(results))
        for generation, output in results:
            if generation in self._running:
                if output.finish_reason or output.error:
                    self._forget(generation)
                generation.put(output)
        self._admit()

    def _forget(self, generation: Generation) -> None:
        self._running.remove(generation)
        self._waiting.ended(generation.caller, generation.cost)

    def _on_cancelled(self) -> None:
        self._cancelling -= 1
        self._admit()

    # What follows runs in the thread.

    def _cancel(self, generation: Generation) -> None:
        self._decoder.cancel(generation)
        assert self._loop is not None, "set by the first submit"
        self._loop.call_soon_threadsafe(self._on_cancelled)

    def _give_back(self, done: asyncio.Future[None]) -> None:
        if self._decoder.idle:
            self._cache.give_back()
        done.get_loop().call_soon_threadsafe(done.set_result, None)

    def _end(self) -> None:
        self._decoder.clear()
        self._closed = True

    def _serve(self) -> None:
        while not self._closed:
            try:
                while self._decoder.idle or not self._commands.empty():
                    self._commands.get()()
                    if self._closed:
                        return
                results = self._decoder.step()
            except Exception as raised:
                exit_if_out_of_memory(raised)
                log.exception("a step failed")
                error = InternalError("the engine failed in a step of this generation")
                results = [(each, StepOutput((), 0, error=error)) for each in self._decoder.clear()]
            self._steps.done()
            if results:
                assert self._loop is not None, "set by the first submit"
                self._loop.call_soon_threadsafe(self._on_results, results)
