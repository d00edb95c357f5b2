"""Texts to token ids as sentence-transformers makes them, outside the GIL."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import invert

from tokenizers import Tokenizer

from shared.errors import InvalidArgumentError
from text_svc.formats.recipe import NO_LIMIT, Recipe
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
        tokenizer: the one of tokenizer.json. Texts are cut at the side where it truncates.
        recipe: whether texts are lower-cased, and the prompts that callers can name.
        max_tokens: most tokens of a text, with special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._recipe = recipe
        self.max_tokens = max_tokens
        side = (tokenizer.truncation or {}).get("direction", "right")
        # Whether a text's end can change what is read of it.
        self._reads_ends = side != "right" or max_tokens >= NO_LIMIT
        tokenizer.no_padding()
        if max_tokens >= NO_LIMIT:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(max_tokens, direction=side)
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
        """Token ids of each text, with special tokens.

        Those that are read and not pooled are below 0, see `SentenceEncoder`.
        """
        short = sum(map(len, texts)) <= INLINE_CHARACTERS and len(texts) <= INLINE_TEXTS
        if short and not self._may_be_slow:
            return self._encode(texts, prompt)
        return await in_thread(self._threads, self._encode, texts, prompt)

    def _encode(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        cleaned = [self._cleaned(prompt + text) for text in texts]
        with tokenizing():
            hidden = self._prompt_length(prompt) if not self._recipe.include_prompt else 0
            encoded = [ids for piece in pieces(cleaned, len) for ids in self._ids(piece)]
        if hidden:
            encoded = [[*map(invert, ids[:hidden]), *ids[hidden:]] for ids in encoded]
        if self._recipe.static:  # the vector of no tokens is 0
            encoded = [ids or [invert(0)] for ids in encoded]
        return encoded

    def _cleaned(self, text: str) -> str:
        if self._recipe.static:
            return text
        text = text.strip()  # sentence-transformers does that too
        return text.lower() if self._recipe.lower_case else text

    def _prompt_length(self, prompt: str) -> int:
        """Tokens at a text's beginning that are not pooled: without the end that a text has."""
        if not prompt:
            return 0
        ids = self._ids([self._cleaned(prompt)])[0]
        added = self._tokenizer.get_added_tokens_decoder()
        ends = bool(ids) and ids[-1] in added and added[ids[-1]].special
        return len(ids) - ends

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if len(texts) == 1 and (ids := self._ids_of_beginning(texts[0])):
            return [ids]
        special = not self._recipe.static
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=special)
        return [encoding.ids for encoding in encodings]

    def _ids_of_beginning(self, text: str) -> list[int]:
        """The ids of a long text, where its beginning has as many as the model reads; else none.

        They end far from where it is cut, so that the rest would not change them.
        """
        if self._reads_ends:
            return []
        length, distance = PIECE_CHARACTERS, PIECE_CHARACTERS // 2
        while length < len(text):
            beginning = [text[:length]]
            special = not self._recipe.static
            encoding = self._tokenizer.encode_batch(beginning, add_special_tokens=special)[0]
            ends = [end for _, end in encoding.offsets]
            if len(ends) >= self.max_tokens and max(ends) <= length - distance:
                ids: list[int] = encoding.ids
                return ids
            length += length // 2
        return []
