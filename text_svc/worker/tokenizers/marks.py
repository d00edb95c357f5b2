"""Keeps the text of special tokens that answers are taken apart by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from text_svc.worker.tokenizers.base import Detokenizer


class MarkKeeper:
    """A detokenizer that writes some special tokens out, where others leave them out.

    Args:
        make: a detokenizer of the same tokenizer, for what comes at first and after each mark.
        kept: the texts of these tokens, by id.
    """

    def __init__(self, make: Callable[[], Detokenizer], kept: Mapping[int, str]) -> None:
        self._make = make
        self._kept = kept
        self._between = make()

    def add(self, token: int) -> str:
        mark = self._kept.get(token)
        if mark is None:
            return self._between.add(token)
        text = self._between.rest() + mark
        self._between = self._make()
        return text

    def rest(self) -> str:
        return self._between.rest()
