"""Micro-batches across callers: fairness, cancelled callers, limits, failures, the cut.

The encoder here runs no model: it holds batches back until the test lets them go.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from shared.caller import CALLER_KEY, set_caller
from shared.errors import InternalError, QueueFullError, ShuttingDownError
from tests.support.stack import wait_for
from tests.support.waiting import until
from text_svc.worker.embeddings.batcher import MicroBatcher
from text_svc.worker.embeddings.encoder import (
    Done,
    Ids,
)
from text_svc.worker.embeddings.metrics import EmbeddingMetrics
from text_svc.worker.length_batches import (
    MAX_BATCH_TOKENS,
    MAX_PADDING_TOKENS,
    length_batches,
)


class HeldEncoder:
    """A vector is its text's first token and length; batches run one at a time, when released."""

    dimensions = 2
    streams = 1

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []
        self.failure: Exception | None = None
        # First tokens of texts that the model fails at, and of those whose vectors overflow.
        self.culprits: set[int] = set()
        self.overflows: set[int] = set()
        self._permits = threading.Semaphore(0)

    def release(self, count: int = 1) -> None:
        self._permits.release(count)

    def wait_idle(self) -> None:
        """Always idle: `start` holds the thread."""

    def start(self, input_ids: Ids, attention_mask: Ids, done: Done) -> None:
        self.batches.append(input_ids)
        self._permits.acquire()
        if self.failure:
            raise self.failure
        if found := self.culprits & set(input_ids[:, 0].tolist()):
            raise ValueError(f"the model fails at {found}")
        vectors = np.stack([input_ids[:, 0], attention_mask.sum(1)], 1).astype(np.float32)
        vectors[np.isin(input_ids[:, 0], list(self.overflows))] = np.nan
        done(vectors)

    def close(self) -> None:
        """Nothing runs."""


MODEL = "tiny/encoder"


@pytest.fixture
def encoder() -> HeldEncoder:
    return HeldEncoder()


@pytest.fixture
def batcher(encoder: HeldEncoder) -> Iterator[MicroBatcher]:
    batcher = MicroBatcher(encoder, pad_token=0, max_waiting=50, metrics=EmbeddingMetrics(MODEL))
    yield batcher
    encoder.release(1000)
    # No more steps are expected; else an idle process would count as hung.
    wait_for("the end of all work", lambda: not batcher._steps._pieces)
    batcher.close()


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(name, {"model": MODEL}) or 0


def texts(first: int, *lengths: int) -> list[list[int]]:
    """Texts of these lengths; each begins with a number of its own."""
    return [[first + index] + [9] * (length - 1) for index, length in enumerate(lengths)]


async def test_every_caller_gets_its_own_in_order(
    encoder: HeldEncoder, batcher: MicroBatcher
) -> None:
    encoder.release(1000)
    calls = [texts(100 * caller, 30, 2, 17, 2, 99) for caller in range(1, 9)]
    answers = await asyncio.gather(*(batcher.embed(call) for call in calls))
    for call, vectors in zip(calls, answers, strict=True):
        assert vectors.tolist() == [[text[0], len(text)] for text in call]


async def test_what_came_meanwhile_makes_one_batch(
    encoder: HeldEncoder, batcher: MicroBatcher
) -> None:
    before = metric("text_batch_texts_sum"), metric("text_batch_texts_count")
    first = asyncio.create_task(batcher.embed(texts(1, 5)))
    await until(lambda: len(encoder.batches) == 1)
    others = [asyncio.create_task(batcher.embed(texts(10 * n, 5))) for n in range(1, 7)]
    await asyncio.sleep(0)
    encoder.release(2)
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in encoder.batches] == [1, 6]
    assert metric("text_batch_texts_sum") - before[0] == 1 + 6
    assert metric("text_batch_texts_count") - before[1] == 2


async def test_a_caller_of_one_text_overtakes_one_of_many(
    encoder: HeldEncoder, batcher: MicroBatcher
) -> None:
    many = asyncio.create_task(batcher.embed(texts(1000, *[200] * 40)))
    await until(lambda: len(encoder.batches) == 1)
    one = asyncio.create_task(batcher.embed(texts(7, 200)))
    await asyncio.sleep(0)
    # What has been drawn for the round that runs goes first, and no more.
    encoder.release(5)
    await one
    assert not many.done()
    assert sum(map(len, encoder.batches)) < 20
    encoder.release(1000)
    assert len(await many) == 40


async def test_texts_of_a_caller_that_has_gone_are_not_run(
    encoder: HeldEncoder, batcher: MicroBatcher
) -> None:
    running = asyncio.create_task(batcher.embed(texts(1, 5)))
    await until(lambda: len(encoder.batches) == 1)
    gone = asyncio.create_task(batcher.embed(texts(100, *[5] * 30)))
    stays = asyncio.create_task(batcher.embed(texts(7, 5)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait({gone})
    encoder.release(1000)
    await asyncio.gather(running, stays)
    assert {int(row[0]) for batch in encoder.batches for row in batch} == {1, 7}
    assert len(await batcher.embed(texts(0, *[5] * 50))) == 50, "nothing of it waits on"


async def test_the_queue_is_bounded(encoder: HeldEncoder, batcher: MicroBatcher) -> None:
    running = asyncio.create_task(batcher.embed(texts(1, 5)))
    await until(lambda: len(encoder.batches) == 1)
    waiting = asyncio.create_task(batcher.embed(texts(100, *[5] * 48)))
    await asyncio.sleep(0)
    assert metric("text_waiting_texts") == 48
    with pytest.raises(QueueFullError, match="limit of 50"):
        await batcher.embed(texts(200, 5, 5, 5))
    encoder.release(1000)
    await asyncio.gather(running, waiting)
    assert len(await batcher.embed(texts(0, *[5] * 70))) == 70, "alone, a call is always taken"


async def test_a_failed_batch_fails_its_callers_alone(
    encoder: HeldEncoder, batcher: MicroBatcher
) -> None:
    encoder.failure = ValueError("the engine says no")
    failed = asyncio.create_task(batcher.embed(texts(1, 5)))
    await until(lambda: len(encoder.batches) == 1)
    encoder.release()
    with pytest.raises(ValueError, match="says no"):
        await failed
    encoder.failure = None
    encoder.release(1000)
    assert len(await batcher.embed(texts(1, 5))) == 1


async def test_a_batch_that_fails_is_run_again_text_by_text(
    encoder: HeldEncoder, batcher: MicroBatcher
) -> None:
    encoder.culprits, encoder.overflows = {20}, {40}
    first = asyncio.create_task(batcher.embed(texts(1, 5)))
    await until(lambda: len(encoder.batches) == 1)
    others = [asyncio.create_task(batcher.embed(texts(10 * n, 5, 4))) for n in range(1, 7)]
    await asyncio.sleep(0)
    encoder.release(1000)
    answers = await asyncio.gather(first, *others, return_exceptions=True)
    assert max(map(len, encoder.batches)) > 1, "they shared batches"
    for number, answer in zip(range(7), answers, strict=True):
        match number:
            case 2:
                assert isinstance(answer, ValueError)
            case 4:
                assert isinstance(answer, InternalError)
                assert "non-finite" in answer.message
            case 0:
                assert answer.tolist() == [[1, 5]]
            case _:
                assert answer.tolist() == [[10 * number, 5], [10 * number + 1, 4]]
    assert len(await batcher.embed(texts(1000, *[5] * 50))) == 50, "nothing of it waits on"


async def test_closing_fails_those_who_wait() -> None:
    encoder = HeldEncoder()
    batcher = MicroBatcher(encoder, pad_token=0, max_waiting=50, metrics=EmbeddingMetrics(MODEL))
    running = asyncio.create_task(batcher.embed(texts(1, 5)))
    await until(lambda: len(encoder.batches) == 1)
    waiting = asyncio.create_task(batcher.embed(texts(10, 5)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    await until(lambda: batcher._closed)
    encoder.release()
    await closing
    assert len(await running) == 1
    with pytest.raises(ShuttingDownError):
        await waiting
    with pytest.raises(ShuttingDownError):
        await batcher.embed(texts(1, 5))


@given(st.lists(st.integers(1, 600), min_size=1, max_size=60), st.integers(1, 8))
def test_the_cut_has_each_text_once_within_the_limits(lengths: list[int], streams: int) -> None:
    batches = length_batches(lengths, streams)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[index] for index in batch]
        assert max(sizes) * len(sizes) <= MAX_BATCH_TOKENS or len(sizes) == 1
        assert sum(max(sizes) - size for size in sizes) <= MAX_PADDING_TOKENS
    widths = [max(lengths[index] for index in batch) for batch in batches]
    assert widths == sorted(widths, reverse=True)


async def embed_as(name: str, batcher: MicroBatcher, encoded: list[list[int]]) -> object:
    set_caller({CALLER_KEY: name})
    return await batcher.embed(encoded)


async def test_callers_take_turns_however_many_calls_they_make(
    encoder: HeldEncoder, batcher: MicroBatcher
) -> None:
    many = [
        asyncio.create_task(embed_as("a", batcher, texts(1000 + number, 200)))
        for number in range(40)
    ]
    await until(lambda: len(encoder.batches) == 1)
    one = asyncio.create_task(embed_as("b", batcher, texts(7, 200)))
    await asyncio.sleep(0)
    encoder.release(5)
    await one
    assert sum(map(len, encoder.batches)) < 20
    encoder.release(1000)
    await asyncio.gather(*many)


async def test_a_caller_with_more_than_half_makes_room(
    encoder: HeldEncoder, batcher: MicroBatcher
) -> None:
    running = asyncio.create_task(embed_as("a", batcher, texts(1, 5)))
    await until(lambda: len(encoder.batches) == 1)
    calls = [
        asyncio.create_task(embed_as("a", batcher, texts(100 * n, *[5] * 10))) for n in range(1, 6)
    ]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="50 texts are waiting"):
        await embed_as("a", batcher, texts(7, 5))
    with pytest.raises(QueueFullError, match="50 texts are waiting"):
        await embed_as("b", batcher, texts(7, *[5] * 26))  # more than its own half
    other = asyncio.create_task(embed_as("b", batcher, texts(7, *[5] * 20)))
    await asyncio.wait(calls[3:], timeout=60)
    for call in calls[3:]:
        with pytest.raises(
            QueueFullError, match="more than its share of the 50 texts that may wait, 25"
        ):
            await call
    encoder.release(1000)
    await asyncio.gather(running, other, *calls[:3])
    assert len(await batcher.embed(texts(0, *[5] * 50))) == 50, "nothing of it waits on"
