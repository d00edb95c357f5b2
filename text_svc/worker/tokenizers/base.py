"""The interface of a tokenizer for generation: text to token ids, and ids to streamed text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """The tokenizer of one model.

    Attributes:
        chat_template: its source; None if the model has none.
        may_be_slow: whether even a short text may take long, see `bounded`.
        special_tokens: "bos_token" and the like, by the names that chat templates use.
    """

    chat_template: str | None
    may_be_slow: bool
    special_tokens: dict[str, str]

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids. `special` adds the special tokens that the model expects around a prompt."""

    def has_token(self, text: str) -> bool:
        """Whether one token of the vocabulary is this text."""

    def special_tokens_in(self, texts: Sequence[str]) -> dict[int, str]:
        """Special tokens, by id, whose text is a part of one of these."""

    def detokenizer(self, prompt: Sequence[int] = ()) -> Detokenizer:
        """A detokenizer for one generation.

        Args:
            prompt: what the generated text continues; empty for one that starts afresh, such as a
                translation.
        """

    def token(self, token: int) -> tuple[str, bytes]:
        """One token as it reads alone, and the bytes that it stands for; see `TokenTexts`."""


class Detokenizer(Protocol):
    """Decodes the token ids of one generation as they arrive."""

    def add(self, token: int) -> str:
        """The text that this token completes; empty in the middle of a character."""

    def rest(self) -> str:
        """The text that was held back, once there are no more tokens."""
