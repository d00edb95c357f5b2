"""Token ids to text while they come, never half a character."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Incremental decoding of one answer. The joined pieces equal the text decoded at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._sent = 0

    def add(self, token: int) -> str:
        """The text that this token completes; empty inside a character."""
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._sent += len(piece)
        return piece

    def rest(self) -> str:
        """What the stream held back, such as a character that the answer's end cut off."""
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text[self._sent :]
