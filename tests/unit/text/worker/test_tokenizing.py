"""Tokenizing has a time limit, and a panic of the library is an error like others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from shared.errors import InvalidArgumentError
from text_svc.worker import tokenizing
from text_svc.worker.model_thread import ModelThread
from text_svc.worker.tokenizing import has_patterns, in_thread


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set when the process would have ended."""
    event = threading.Event()
    monkeypatch.setattr(tokenizing, "_limit", 0.2)
    monkeypatch.setattr(tokenizing, "_giving_up", False)
    monkeypatch.setattr(tokenizing, "LAST_SECONDS", 0)
    monkeypatch.setattr(tokenizing.os, "_exit", lambda code: event.set())
    yield event
    assert not tokenizing._begun


def slow(go_on: threading.Event) -> str:
    with tokenizing.tokenizing():
        go_on.wait(30)
    return "done"


def tokenizer(pattern: str) -> Tokenizer:
    made = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    made.normalizer = normalizers.Replace(Regex(pattern), "b")
    return made


async def test_the_caller_is_told_and_the_process_ends(ended: threading.Event) -> None:
    go_on = threading.Event()
    with pytest.raises(InvalidArgumentError, match=r"longer than 0\.2 s"):
        await in_thread(None, slow, go_on)
    assert await asyncio.to_thread(ended.wait, 30)
    go_on.set()
    while tokenizing._begun:  # the thread ends
        await asyncio.sleep(0.01)


async def test_a_call_in_the_models_thread_is_watched_too(ended: threading.Event) -> None:
    go_on, thread = threading.Event(), ModelThread(4)
    first = asyncio.create_task(thread.run(lambda cancelled: slow(go_on)))
    second = asyncio.create_task(thread.run(lambda cancelled: "second"))
    with pytest.raises(InvalidArgumentError, match="longer than"):
        await first
    assert not second.done(), "the call that waits is not to blame"
    go_on.set()
    assert await second == "second"
    assert await asyncio.to_thread(ended.wait, 30)


async def test_long_work_that_does_not_tokenize_has_no_limit(ended: threading.Event) -> None:
    def work() -> str:
        with tokenizing.tokenizing():
            pass
        time.sleep(0.6)
        return "done"

    assert await in_thread(None, work) == "done"
    assert not ended.is_set()


async def test_a_call_in_the_queue_is_not_to_blame(ended: threading.Event) -> None:
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = asyncio.create_task(in_thread(pool, slow, go_on))
        second = asyncio.create_task(in_thread(pool, str, 5))
        with pytest.raises(InvalidArgumentError):
            await first
        go_on.set()
        assert await second == "5"


def test_a_panic_is_an_error() -> None:
    with (
        pytest.raises(InvalidArgumentError, match="fails on this text: Onig"),
        tokenizing.tokenizing(),
    ):
        tokenizer("(a|aa)+$").encode_batch_fast(["a" * 50 + "!"])


def test_which_tokenizers_have_patterns() -> None:
    plain = Tokenizer(models.BPE())
    assert not has_patterns(plain)
    plain.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("a", "b")])
    plain.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert not has_patterns(plain)
    plain.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("a+"), "isolated")])
    assert has_patterns(plain)
    assert has_patterns(tokenizer("a"))
