"""Micro-batches across callers: texts that arrive while the model runs form the next batches.

One thread feeds the encoder. It starts a batch whenever one of the encoder's streams is free.
Batches are made from a round: callers take turns by the tokens that they have been served, and the
calls of one caller take turns by their texts, the shortest of a call first, until the round has
enough work for all streams. So there is no timer to wait for, a caller with one text waits for at
most one round even if others have sent thousands, and texts of similar length share a batch, since
padding is wasted work.

A batch that fails is run again text by text: only the calls of the texts at fault fail.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial

import numpy as np

from shared.caller import Weights, caller, priority
from shared.errors import InternalError, QueueFullError, ShuttingDownError
from shared.places import shares
from text_svc.worker.embeddings.encoder import (
    Encoder,
    Vectors,
)
from text_svc.worker.embeddings.metrics import EmbeddingMetrics
from text_svc.worker.embeddings.rotation import Rotation
from text_svc.worker.length_batches import MAX_BATCH_TOKENS, length_batches
from text_svc.worker.steps import Steps

log = logging.getLogger(__name__)


class _Call:
    """The texts of one call: those that wait, shortest first, and the vectors so far."""

    def __init__(self, encoded: Sequence[Sequence[int]], dimensions: int) -> None:
        self.caller = caller()
        self.priority = priority()
        self.encoded = encoded
        self.waiting = deque(sorted(range(len(encoded)), key=lambda index: len(encoded[index])))
        self.missing = len(encoded)
        self.rows = np.empty((len(encoded), dimensions), np.float32)
        self.future: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()
        self.gone = False

    def settle(self, error: BaseException | None) -> None:
        """Sets the call's result. Called on the event loop's thread only."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(self.rows)
        else:
            self.future.set_exception(error)


# A text to encode: its call, and its index there.
_Item = tuple[_Call, int]


def _length(item: _Item) -> int:
    call, index = item
    return len(call.encoded[index])


class MicroBatcher:
    """Shares an encoder among callers.

    Args:
        encoder: closed together with the batcher.
        pad_token: the id to pad short texts with.
        max_waiting: most texts of all callers that wait; further ones are refused. A call is
            always accepted if no text waits. A caller that stays within its share of it is accepted
            if another has more than its own: calls of that one, the newest first, make room.
        metrics: of the model.
        weights: of callers.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        pad_token: int,
        max_waiting: int,
        metrics: EmbeddingMetrics,
        weights: Weights | None = None,
    ) -> None:
        self.dimensions = encoder.dimensions
        self._encoder = encoder
        self._pad_token = pad_token
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._steps = Steps()
        self._running = 0
        self._changed = threading.Condition()
        self._weights = weights or {}
        self._calls: Rotation[_Call] = Rotation(self._weights)
        self._waiting = 0
        self._waiting_of: Counter[str] = Counter()
        self._round: deque[list[_Item]] = deque()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="embed", daemon=True)
        self._thread.start()

    async def embed(self, encoded: Sequence[Sequence[int]]) -> Vectors:
        """Encodes tokenized texts.

        If the caller is cancelled, those of its texts that have not started never run.

        Returns:
            Vectors in the order of the texts, shape (texts, dimensions).

        Raises:
            QueueFullError: too many texts wait already.
            ShuttingDownError: the batcher is being closed.
        """
        call = _Call(encoded, self.dimensions)
        self._loop = asyncio.get_running_loop()
        with self._changed:
            if self._closed:
                raise ShuttingDownError("the model is being unloaded")
            if not self._has_room(len(encoded)):
                self._make_room(call)
            if not self._has_room(len(encoded)):
                raise QueueFullError(
                    f"{self._waiting} texts are waiting, and {len(encoded)} more would exceed the "
                    f"limit of {self._max_waiting}",
                    metadata={"limit": str(self._max_waiting)},
                )
            self._count(call, len(encoded))
            self._calls.add(call)
            self._metrics.waiting(self._waiting, self._calls.callers)
            self._expect()
            self._changed.notify()
        try:
            return await call.future
        except asyncio.CancelledError:
            self._drop(call)
            raise
        finally:
            call.gone = True

    def close(self) -> None:
        """Waits for the batches that run; calls that wait fail."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._encoder.close()
        left = [call for batch in self._round for call, _ in batch]
        error = ShuttingDownError("the model is being unloaded")
        self._settle([*self._calls.all(), *left], error)

    def _has_room(self, texts: int) -> bool:
        return not self._waiting or self._waiting + texts <= self._max_waiting

    def _make_room(self, asking: _Call) -> None:
        """Ends calls of a caller that has more than its share. On the loop; the lock is held."""
        texts, callers = len(asking.encoded), {asking.caller, *self._waiting_of}
        share = shares(self._max_waiting, callers, self._weights)
        if self._waiting_of[asking.caller] + texts > share[asking.caller]:
            return
        # The order is that of their turns, which is close to that of their arrival.
        for call in reversed(self._calls.all()):
            if self._has_room(texts):
                return
            if self._waiting_of[call.caller] > share[call.caller]:
                self._remove(call)
                error = QueueFullError(
                    f"another caller has asked, and this one has more than its share of the "
                    f"{self._max_waiting} texts that may wait, {share[call.caller]}",
                    metadata={"limit": str(self._max_waiting)},
                )
                call.settle(error)

    def _drop(self, call: _Call) -> None:
        """Takes a call whose caller has gone out of the queue."""
        with self._changed:
            if self._remove(call):
                self._expect()
                self._metrics.waiting(self._waiting, self._calls.callers)

    def _remove(self, call: _Call) -> bool:
        """Takes the texts of a call out of the queue; False if none waits. The lock is held."""
        if not self._calls.remove(call):
            return False
        self._count(call, -len(call.waiting))
        call.waiting.clear()
        call.gone = True
        return True

    def _count(self, call: _Call, texts: int) -> None:
        """Notes how many texts of a call wait, more or fewer. The lock is held."""
        self._waiting += texts
        self._waiting_of[call.caller] += texts
        if not self._waiting_of[call.caller]:
            del self._waiting_of[call.caller]

    def _expect(self) -> None:
        """Tells what there is to do. The lock is held."""
        self._steps.expect(len(self._calls) + len(self._round) + self._running)

    def _run(self) -> None:
        while True:
            self._encoder.wait_idle()
            batch = self._next_batch()
            if batch is None:
                return
            done = partial(self._done, batch)
            try:
                self._encoder.start(*self._pad(batch), done)
            except Exception as error:  # noqa: BLE001  # it is raised in the callers
                done(error)

    def _next_batch(self) -> list[_Item] | None:
        """Waits for work; None once the batcher is closed."""
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
                drawn = self._round.popleft() if self._round else []
                batch = [item for item in drawn if not item[0].gone]
                self._running += bool(batch)
                self._expect()
            if batch:
                self._metrics.batch(len(batch), self._waiting, self._calls.callers)
                return batch

    def _draw(self) -> list[_Item]:
        """Takes the texts of a round from the calls. The lock is held."""
        budget = MAX_BATCH_TOKENS * self._encoder.streams
        drawn: list[_Item] = []
        while self._calls and budget > 0:
            call = self._calls.first()
            item = call, call.waiting.popleft()
            self._calls.served(call, _length(item), waits=bool(call.waiting))
            self._count(call, -1)
            budget -= _length(item)
            drawn.append(item)
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
        """Hands out the vectors of a batch. Called in a thread of the encoder."""
        self._steps.done()
        if isinstance(result, BaseException):
            log.error("a batch failed", extra={"texts": len(batch)}, exc_info=result)
            self._failed(batch, result)
            return
        is_finite = np.isfinite(result.sum(axis=1))
        finished, broken = [], []
        with self._changed:
            self._running -= 1
            self._expect()
            for row, (call, index) in enumerate(batch):
                call.rows[index] = result[row]
                call.missing -= 1
                if not is_finite[row]:
                    call.gone = True
                    broken.append(call)
                elif not call.missing:
                    call.gone = True
                    finished.append(call)
        self._settle(broken, InternalError("the model's vector of a text has non-finite numbers"))
        self._settle(finished, None)

    def _failed(self, batch: list[_Item], error: BaseException) -> None:
        """Has the texts of a failed batch run one by one; one that was alone fails its call."""
        with self._changed:
            self._running -= 1
            if len(batch) > 1:
                self._round.extendleft([item] for item in reversed(batch))
                self._changed.notify()
            else:
                batch[0][0].gone = True
            self._expect()
        if len(batch) == 1:
            self._settle([batch[0][0]], error)

    def _settle(self, calls: list[_Call], error: BaseException | None) -> None:
        """Sets the results of calls, in one callback on the event loop; from any thread."""

        def settle() -> None:
            for call in calls:
                call.settle(error)

        if calls and self._loop:
            self._loop.call_soon_threadsafe(settle)
