"""Texts to token ids as sentence-transformers makes them, outside the GIL."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tokenizers import Tokenizer

from shared.errors import InvalidArgumentError
from text_svc.formats.recipe import Recipe
from text_svc.worker.tokenizing import (
    PIECE_CHARACTERS,
    has_patterns,
    in_thread,
    pieces,
    tokenizing,
)

# Tokenising releases the GIL, so a caller with many texts does not block another one.
THREADS = 2
# Smaller calls take less than a millisecond, which is less than a thread switch costs.
INLINE_CHARACTERS = 4096
INLINE_TEXTS = 16


class SentenceTokenizer:
    """A model's tokenizer, which truncates texts to `max_tokens`.

    Args:
        tokenizer: the one of tokenizer.json.
        recipe: whether texts are lower-cased, and the prompts that callers can name.
        max_tokens: most tokens of a text, with special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._recipe = recipe
        self.max_tokens = max_tokens
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        self._may_be_slow = has_patterns(tokenizer)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenize")

    def prompt(self, name: str) -> str:
        """The text of a named prompt; "" names the model's default.

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
        """Token ids of each text, with special tokens."""
        short = sum(map(len, texts)) <= INLINE_CHARACTERS and len(texts) <= INLINE_TEXTS
        if short and not self._may_be_slow:
            return self._encode(texts, prompt)
        return await in_thread(self._threads, self._encode, texts, prompt)

    def _encode(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        # sentence-transformers strips texts too.
        cleaned = [(prompt + text).strip() for text in texts]
        if self._recipe.lower_case:
            cleaned = [text.lower() for text in cleaned]
        with tokenizing():
            return [ids for piece in pieces(cleaned, len) for ids in self._ids(piece)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if len(texts) == 1 and (ids := self._ids_of_beginning(texts[0])):
            return [ids]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def _ids_of_beginning(self, text: str) -> list[int]:
        """The ids of a long text, where its beginning has as many as the model reads; else none.

        They end far from where it is cut, so that the rest would not change them.
        """
        length, distance = PIECE_CHARACTERS, PIECE_CHARACTERS // 2
        while length < len(text):
            encoding = self._tokenizer.encode_batch([text[:length]])[0]
            ends = [end for _, end in encoding.offsets]
            if len(ends) >= self.max_tokens and max(ends) <= length - distance:
                ids: list[int] = encoding.ids
                return ids
            length += length // 2
        return []
