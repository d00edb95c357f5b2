"""Prompts to tokens, and tokens to texts that continue them."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.tiny_text import byte_fallback_tokenizer
from text_svc.worker.engines.base import Generation, Limits, StepOutput
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import Sampling, SamplingDefaults
from text_svc.worker.generation import generator as module
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.tokenizers.detokenizer import FastDetokenizers


class CountedTokenizer:
    """A tokenizer that is slow, and counts how many texts it has at once."""

    chat_template = None
    may_be_slow = False

    def __init__(self) -> None:
        self.special_tokens: dict[str, str] = {}
        self.at_once = self.most = 0
        self._lock = threading.Lock()

    def encode(self, text: str, *, special: bool) -> list[int]:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        time.sleep(0.05)
        with self._lock:
            self.at_once -= 1
        return [len(text)]


class WritingEngine:
    """An engine whose answer is always the same tokens."""

    def __init__(self, tokens: list[int], new_tokens: int | None) -> None:
        self.limits = Limits(context=100, running=1, waiting=1, new_tokens=new_tokens)
        self._tokens = tokens

    def submit(self, generation: Generation) -> None:
        for token in self._tokens:
            generation.put(StepOutput((token,), 1))
        generation.put(StepOutput((), 1, "stop"))

    def cancel(self, generation: Generation) -> None:
        """It has ended already."""


@pytest.mark.parametrize(
    ("new_tokens", "stop", "expected"),
    [
        (None, (), " sea the sea"),
        (20, (), "sea the sea"),  # an encoder has read the prompt
        (None, (" sea",), ""),
        (None, (" the",), " sea"),
        (20, (" sea",), "sea the"),
    ],
)
async def test_an_answer_continues_the_prompt(
    new_tokens: int | None, stop: tuple[str, ...], expected: str
) -> None:
    backend = byte_fallback_tokenizer()
    the, sea = (backend.token_to_id(word) for word in ("▁the", "▁sea"))
    detokenizers = FastDetokenizers(backend)
    tokenizer: Any = SimpleNamespace(
        chat_template=None, special_tokens={}, detokenizer=detokenizers.after
    )
    engine: Any = WritingEngine([sea, the, sea], new_tokens)
    metrics = EngineMetrics("tiny")
    generator = TextGenerator(engine, tokenizer, SamplingDefaults(), metrics, 100)
    sampling = Sampling(temperature=0, top_p=1, max_new_tokens=9, stop=stop)
    deltas = [delta async for delta in generator.generate([the], sampling)]
    assert "".join(delta.text for delta in deltas) == expected


async def test_one_long_text_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INLINE_CHARACTERS", 2)
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 8)
    tokenizer: Any = CountedTokenizer()
    engine: Any = SimpleNamespace(limits=Limits(100, running=1, waiting=1))
    generator = TextGenerator(engine, tokenizer, None, None, 100)  # type: ignore[arg-type]
    gone = asyncio.create_task(generator.encode("left while it runs"))
    await asyncio.sleep(0.02)
    gone.cancel()
    assert await asyncio.gather(*(generator.encode("x" * 9) for _ in range(4))) == [[9]] * 4
    assert tokenizer.most == 1
    await asyncio.gather(*(generator.encode("x" * 8) for _ in range(4)))
    assert tokenizer.most > 1
