"""Tokenizers of any kind for answers that stream; Marian's is none of `tokenizers`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


class SlowTokenizer:
    """One of transformers' tokenizers, as a `Tokenizer`.

    Args:
        tokenizer: the tokenizer.
        dropped: ids that are left out of an answer; the special ones when not given.
    """

    def __init__(self, tokenizer: Any, dropped: Collection[int] | None = None) -> None:
        self.chat_template: str | None = None
        self.special_tokens: dict[str, str] = {}
        self._tokenizer = tokenizer
        self._dropped = dropped

    def encode(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def detokenizer(self) -> SlowDetokenizer:
        return SlowDetokenizer(self._tokenizer, self._dropped)


class SlowDetokenizer:
    """Decodes an answer anew with each token, and gives what is new: answers are short here."""

    def __init__(self, tokenizer: Any, dropped: Collection[int] | None) -> None:
        self._tokenizer = tokenizer
        self._skip_special = dropped is None
        self._dropped = dropped or ()
        self._ids: list[int] = []
        self._sent = ""

    def add(self, token: int) -> str:
        if token in self._dropped:
            return ""
        self._ids.append(token)
        text = self._text()
        # Half a character, or a decoder that changes what it has said: wait.
        if text.endswith("\ufffd") or not text.startswith(self._sent):
            return ""
        piece, self._sent = text[len(self._sent) :], text
        return piece

    def rest(self) -> str:
        return self._text()[len(self._sent) :]

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip_special)
        return text
