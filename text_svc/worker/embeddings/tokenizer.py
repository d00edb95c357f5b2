"""Texts to token ids as sentence-transformers makes them, in Rust threads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tokenizers import Tokenizer

from shared.errors import InvalidArgumentError
from text_svc.formats.recipe import Recipe

# Tokenising releases the GIL: while one caller's many texts are worked on, another's are too.
THREADS = 2
# Up to here it takes less than a millisecond, and no longer than the way to a thread and back.
INLINE_CHARACTERS = 4096
INLINE_TEXTS = 16


class SentenceTokenizer:
    """A model's tokenizer with its truncation; what is over `max_tokens` is cut off.

    Args:
        tokenizer: as in tokenizer.json.
        recipe: whether texts are lowered, and the prompts that callers may name.
        max_tokens: of one text, special tokens among them.
    """

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._recipe = recipe
        self.max_tokens = max_tokens
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenize")

    def prompt(self, name: str) -> str:
        """The text of a prompt's name; "" is the model's default.

        Raises:
            InvalidArgumentError: the model has no such prompt; the message lists what it has.
        """
        prompts = self._recipe.prompts
        name = name or self._recipe.default_prompt
        if name and name not in prompts:
            known = ", ".join(sorted(prompts))[:300] or "none"
            raise InvalidArgumentError(
                f"the model has no prompt {name[:80]!r}; it has {known}", field="prompt_name"
            )
        return prompts.get(name, "")

    async def encode(self, texts: Sequence[str], prompt: str = "") -> list[list[int]]:
        """Token ids of each text, with the special tokens."""
        if sum(map(len, texts)) <= INLINE_CHARACTERS and len(texts) <= INLINE_TEXTS:
            return self._encode(texts, prompt)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._encode, texts, prompt)

    def _encode(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        # sentence-transformers strips too: a text is the same with spaces around it.
        cleaned = [(prompt + text).strip() for text in texts]
        if self._recipe.lower_case:
            cleaned = [text.lower() for text in cleaned]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(cleaned)]
