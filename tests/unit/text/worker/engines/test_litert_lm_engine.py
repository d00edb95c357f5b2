"""The engine on LiteRT-LM without a model: what it asks of the library, which is played here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import litert_lm
import pytest

from shared.errors import InternalError
from text_svc.worker.engines.base import PROMPT_TEXT, Generation, Limits, StepOutput
from text_svc.worker.engines.litert_lm import (
    PIECE_TOKENS,
    LiteRtLmEngine,
    LiteRtLmTokenizer,
    sampler,
)
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import Sampling


class Library:
    """A model whose tokens are characters and whose answer is "abc…"; its start token is "^"."""

    bos_token_id = 1

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.fails = False

    def tokenize(self, text: str) -> list[int]:
        return list(map(ord, text))

    def detokenize(self, ids: list[int]) -> str:
        assert ids == [self.bos_token_id]
        return "^"

    def create_session(self, **options: Any) -> Session:
        self.sessions.append(Session(self, options))
        return self.sessions[-1]

    def close(self) -> None:
        assert all(each.closed for each in self.sessions)


class Session:
    def __init__(self, library: Library, options: dict[str, Any]) -> None:
        self.library, self.options = library, options
        self.read: list[str] = []
        self.begun = threading.Event()
        self.cancelled = self.drained = self.closed = False
        self.written = 0

    def run_prefill(self, texts: list[str]) -> None:
        assert not self.closed
        if self.library.fails:
            raise RuntimeError("litert_lm_session_run_prefill failed")
        self.read += texts
        self.begun.set()
        assert self.library.may_go_on.wait(20)

    def run_decode_async(self) -> Iterator[Any]:
        most = self.options["max_output_tokens"]
        while self.written < most and not self.cancelled:
            self.written += 1
            yield SimpleNamespace(texts=[chr(96 + self.written)])
            assert self.library.may_go_on.wait(20)
        self.drained = True

    def get_benchmark_info(self) -> Any:
        return SimpleNamespace(last_decode_token_count=self.written)

    def cancel_process(self) -> None:
        assert not self.closed
        self.cancelled = True

    def close(self) -> None:
        self.closed = True


def made(library: Any) -> LiteRtLmEngine:
    tokenizer = LiteRtLmTokenizer.__new__(LiteRtLmTokenizer)
    tokenizer._model, tokenizer._start, tokenizer._start_text = library, 1, "^"
    limits = Limits(context=10_000, running=1, waiting=4, repetition_penalty=False)
    return LiteRtLmEngine(library, tokenizer, limits, EngineMetrics("played"))


def generation(text: str, caller: str = "", new_tokens: int = 3) -> Generation:
    sampling = Sampling(temperature=0, top_p=1, max_new_tokens=new_tokens)
    return Generation([1, *map(ord, text)], sampling, {PROMPT_TEXT: "^" + text}, caller)


async def rest(one: Generation) -> list[StepOutput]:
    outputs: list[StepOutput] = []
    while not outputs or not (outputs[-1].finish_reason or outputs[-1].error):
        outputs += await one.take()
    return outputs


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


async def test_a_generation() -> None:
    library = Library()
    engine, one = made(library), generation("hello")
    engine.submit(one)
    outputs = await rest(one)
    assert "".join(each.text for each in outputs) == "abc"
    assert sum(each.count for each in outputs) == 3
    assert outputs[-1].finish_reason == "length"
    (session,) = library.sessions
    assert session.read == ["hello"], "the library adds the start token itself"
    assert session.options["apply_prompt_template"] is False
    await engine.close()
    assert session.closed


async def test_a_generation_that_is_cancelled_while_its_prompt_is_read_reads_no_more() -> None:
    library = Library()
    library.may_go_on.clear()
    engine, one = made(library), generation("word " * (PIECE_TOKENS * 3 // 5))
    engine.submit(one)
    while not library.sessions:
        await asyncio.sleep(0.01)
    (session,) = library.sessions
    await until(session.begun)
    engine.cancel(one)
    assert session.cancelled
    library.may_go_on.set()
    await engine.close()
    assert len(session.read) == 1
    assert not session.written


async def test_a_cancelled_answer_is_read_to_its_end_before_the_session_is_closed() -> None:
    library = Library()
    engine, one = made(library), generation("hello", new_tokens=10**6)
    engine.submit(one)
    await one.take()
    engine.cancel(one)
    await engine.close()
    (session,) = library.sessions
    assert session.drained
    assert session.written < 10**6


async def test_one_runs_at_a_time_and_callers_take_turns() -> None:
    library = Library()
    library.may_go_on.clear()
    engine = made(library)
    ones = [generation(name, name[0]) for name in ("a1", "a2", "a3", "b1")]
    gone = generation("c1", "c")
    for one in (*ones, gone):
        engine.submit(one)
    engine.cancel(gone)  # it waits
    library.may_go_on.set()
    for one in ones:
        await rest(one)
    assert [each.read for each in library.sessions] == [["a1"], ["b1"], ["a2"], ["a3"]]
    await engine.close()


async def test_an_error_of_the_library_fails_one_generation_alone() -> None:
    library = Library()
    library.fails = True
    engine, one, two = made(library), generation("hello"), generation("again")
    engine.submit(one)
    assert isinstance((await rest(one))[-1].error, InternalError)
    library.fails = False
    engine.submit(two)
    assert (await rest(two))[-1].error is None
    await engine.close()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (Sampling(0, 1, 5), (1, 1.0, 1.0, 0)),
        (Sampling(0.5, 0.9, 5, top_k=7, seed=3), (7, 0.9, 0.5, 3)),
        (Sampling(0.5, 0.9, 5, seed=2**64 - 1), (1 << 20, 0.9, 0.5, 3)),
    ],
)
def test_the_parameters_of_sampling(given: Sampling, wanted: tuple[Any, ...]) -> None:
    assert sampler(given) == litert_lm.SamplerConfig(*wanted)
