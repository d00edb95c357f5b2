"""Micro-batches across callers: what came while the model ran makes the next batches.

One thread owns the encoder's queue. Whenever a stream of the encoder is free it starts a batch.
Batches are cut from a round: one text of each waiting call in turn, shortest first within a call,
until the round would keep all streams busy once. So nobody waits for a timer, a call of one text
waits for no more than one round however many texts others have sent, and texts of like length
share a batch, since padding is work for nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial

import numpy as np

from shared.errors import QueueFullError, ShuttingDownError
from text_svc.worker.embeddings.encoder import (
    Encoder,
    Vectors,
)
from text_svc.worker.engines.metrics import EmbeddingMetrics
from text_svc.worker.length_batches import MAX_BATCH_TOKENS, length_batches

log = logging.getLogger(__name__)


class _Call:
    """The texts of one caller: those that wait, shortest first, and the vectors that came."""

    def __init__(self, encoded: Sequence[Sequence[int]], dimensions: int) -> None:
        self.encoded = encoded
        self.waiting = deque(sorted(range(len(encoded)), key=lambda index: len(encoded[index])))
        self.missing = len(encoded)
        self.rows = np.empty((len(encoded), dimensions), np.float32)
        self.future: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()
        self.gone = False

    def settle(self, error: BaseException | None) -> None:
        """Answers the caller; on the event loop."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(self.rows)
        else:
            self.future.set_exception(error)


# A text that is to be encoded: its call and its place there.
_Item = tuple[_Call, int]


def _length(item: _Item) -> int:
    call, index = item
    return len(call.encoded[index])


class MicroBatcher:
    """Shares an encoder among callers.

    Args:
        encoder: closed with this.
        pad_token: the token that fills short texts up.
        max_waiting: texts that wait at most, all callers together; more are refused. A call is
            always taken when nothing waits.
        metrics: of the model.
    """

    def __init__(
        self, encoder: Encoder, *, pad_token: int, max_waiting: int, metrics: EmbeddingMetrics
    ) -> None:
        self.dimensions = encoder.dimensions
        self._encoder = encoder
        self._pad_token = pad_token
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._changed = threading.Condition()
        self._calls: deque[_Call] = deque()
        self._waiting = 0
        self._round: deque[list[_Item]] = deque()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="embed", daemon=True)
        self._thread.start()

    async def embed(self, encoded: Sequence[Sequence[int]]) -> Vectors:
        """Vectors of tokenised texts, shape (texts, dimensions), in their order.

        When the caller is cancelled, its texts that have not begun are never run.

        Raises:
            QueueFullError: too many texts wait already.
        """
        call = _Call(encoded, self.dimensions)
        self._loop = asyncio.get_running_loop()
        with self._changed:
            if self._closed:
                raise ShuttingDownError("the model is being unloaded")
            if self._waiting and self._waiting + len(encoded) > self._max_waiting:
                raise QueueFullError(
                    f"{self._waiting} texts wait and {len(encoded)} more are over the limit of "
                    f"{self._max_waiting}",
                    metadata={"limit": str(self._max_waiting)},
                )
            self._waiting += len(encoded)
            self._metrics.waiting(self._waiting)
            self._calls.append(call)
            self._changed.notify()
        try:
            return await call.future
        finally:
            call.gone = True

    def close(self) -> None:
        """Ends the thread once what has begun is done; calls that wait fail."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._encoder.close()
        self._settle(list(self._calls), ShuttingDownError("the model is being unloaded"))

    def _run(self) -> None:
        while True:
            self._encoder.wait_idle()
            batch = self._next_batch()
            if batch is None:
                return
            done = partial(self._done, batch)
            try:
                self._encoder.start(*self._pad(batch), done)
            except Exception as error:  # noqa: BLE001  # whatever the engine raises is the callers'
                done(error)

    def _next_batch(self) -> list[_Item] | None:
        """Waits for work; None when closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._round or self._calls or self._closed)
                if self._closed:
                    return None
                if not self._round:
                    drawn = self._draw()
                    lengths = [_length(item) for item in drawn]
                    batches = length_batches(lengths, self._encoder.streams)
                    self._round.extend([drawn[index] for index in batch] for batch in batches)
                batch = self._round.popleft() if self._round else []
            if batch := [item for item in batch if not item[0].gone]:
                self._metrics.batch(len(batch), self._waiting)
                return batch

    def _draw(self) -> list[_Item]:
        """Takes the texts of a round; holds the lock."""
        budget = MAX_BATCH_TOKENS * self._encoder.streams
        drawn: list[_Item] = []
        while self._calls and budget > 0:
            call = self._calls.popleft()
            if call.gone:
                self._waiting -= len(call.waiting)
                continue
            item = call, call.waiting.popleft()
            self._waiting -= 1
            budget -= _length(item)
            drawn.append(item)
            if call.waiting:
                self._calls.append(call)
        return drawn

    def _pad(self, batch: list[_Item]) -> tuple[np.ndarray, np.ndarray]:
        width = max(map(_length, batch))
        ids = np.full((len(batch), width), self._pad_token, np.int64)
        mask = np.zeros((len(batch), width), np.int64)
        for row, (call, index) in enumerate(batch):
            tokens = call.encoded[index]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask

    def _done(self, batch: list[_Item], result: Vectors | BaseException) -> None:
        """Hands out a batch's vectors; in a thread of the encoder."""
        error = result if isinstance(result, BaseException) else None
        if error:
            log.error("a batch failed", exc_info=error)
        finished = []
        for row, (call, index) in enumerate(batch):
            if not isinstance(result, BaseException):
                call.rows[index] = result[row]
        with self._changed:
            for call, _ in batch:
                call.missing -= 1
                if error or not call.missing:
                    call.gone = True
                    finished.append(call)
        self._settle(finished, error)

    def _settle(self, calls: list[_Call], error: BaseException | None) -> None:
        """Wakes the event loop once for all of them; from any thread."""

        def settle() -> None:
            for call in calls:
                call.settle(error)

        if calls and self._loop:
            self._loop.call_soon_threadsafe(settle)
