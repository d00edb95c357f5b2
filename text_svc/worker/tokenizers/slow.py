"""Any tokenizer of transformers, for models without a tokenizer.json, such as Marian's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from text_svc.worker.tokenizers.detokenizer import HALF, context_of
from text_svc.worker.tokenizing import has_patterns, tokenizing


class SlowTokenizer:
    """A `Tokenizer` on one of transformers' tokenizers.

    Args:
        tokenizer: the tokenizer.
        dropped: ids to leave out of the text; by default the special ones.
    """

    def __init__(self, tokenizer: Any, dropped: Collection[int] | None = None) -> None:
        self.chat_template: str | None = None
        self.special_tokens: dict[str, str] = {}
        self.may_be_slow = not tokenizer.is_fast or has_patterns(tokenizer.backend_tokenizer)
        self._tokenizer = tokenizer
        self._dropped = dropped
        self._special = frozenset(tokenizer.all_special_ids)

    def has_token(self, text: str) -> bool:
        return text in self._tokenizer.get_vocab()

    def special_tokens_in(self, texts: Sequence[str]) -> dict[int, str]:
        tokens = zip(
            self._tokenizer.all_special_ids, self._tokenizer.all_special_tokens, strict=True
        )
        return {
            token: special for token, special in tokens if any(special in text for text in texts)
        }

    def token(self, token: int) -> tuple[str, bytes]:
        text: str = self._tokenizer.decode([token])
        return text, b"" if token in self._special else text.encode()

    def encode(self, text: str, *, special: bool) -> list[int]:
        with tokenizing():
            ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def detokenizer(self, prompt: Sequence[int] = ()) -> SlowDetokenizer:
        context = context_of(prompt, self._special, self._tokenizer.decode)
        return SlowDetokenizer(self._tokenizer, self._dropped, context)


class SlowDetokenizer:
    """Decodes all tokens again with each new one, which is fast enough for short texts.

    Args:
        tokenizer: one of transformers' tokenizers.
        dropped: see `SlowTokenizer`.
        context: tokens before the generation, see `context_of`; their text is left out.
    """

    def __init__(
        self, tokenizer: Any, dropped: Collection[int] | None, context: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = dropped is None
        self._dropped = dropped or ()
        self._ids = list(context)
        self._sent = self._text() if context else ""

    def add(self, token: int) -> str:
        if token in self._dropped:
            return ""
        self._ids.append(token)
        text = self._text()
        # Wait: the text ends in half a character, or the decoder changed what it gave before.
        if text.endswith(HALF) or not text.startswith(self._sent):
            return ""
        piece, self._sent = text[len(self._sent) :], text
        return piece

    def rest(self) -> str:
        return self._text()[len(self._sent) :]

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip_special)
        return text
