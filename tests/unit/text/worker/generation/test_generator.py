"""Long prompts are tokenized one at a time, since each takes much memory."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from text_svc.worker.generation import generator as module
from text_svc.worker.generation.generator import TextGenerator


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


async def test_one_long_text_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INLINE_CHARACTERS", 2)
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 8)
    tokenizer: Any = CountedTokenizer()
    engine: Any = SimpleNamespace(limits=SimpleNamespace(running=1, waiting=1))
    generator = TextGenerator(engine, tokenizer, None, None, 100)  # type: ignore[arg-type]
    gone = asyncio.create_task(generator.encode("left while it runs"))
    await asyncio.sleep(0.02)
    gone.cancel()
    assert await asyncio.gather(*(generator.encode("x" * 9) for _ in range(4))) == [[9]] * 4
    assert tokenizer.most == 1
    await asyncio.gather(*(generator.encode("x" * 8) for _ in range(4)))
    assert tokenizer.most > 1
