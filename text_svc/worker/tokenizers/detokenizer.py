"""Token ids to text while they come, never half a character."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


def held_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the tokens that end no row of bytes: those of one byte of a character, such as <0xE9>,
    and the special ones, which are left out of the text and so of the row."""
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    if not (single := {token for token in ids if token is not None}):
        return frozenset()
    added = tokenizer.get_added_tokens_decoder().items()
    return frozenset(single | {token for token, what in added if what.special})


class FastDetokenizer:
    """Incremental decoding of one answer. The joined pieces equal the text decoded at once.

    Args:
        tokenizer: of the model.
        held_tokens: see the function. A row of bytes is decoded as a whole, since its last byte
            decides whether its first ones are characters; so it is held back until it ends.
    """

    def __init__(self, tokenizer: Tokenizer, held_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._held_tokens = held_tokens
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = 0
        self._sent = 0

    def add(self, token: int) -> str:
        """The text that this token completes; empty inside a character."""
        self._ids.append(token)
        if token in self._held_tokens:
            return ""
        piece: str = self._stream.step(self._tokenizer, self._ids[self._decoded :]) or ""
        self._decoded = len(self._ids)
        self._sent += len(piece)
        return piece

    def rest(self) -> str:
        """What was held back, such as a character that the answer's end cut off."""
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text[self._sent :]
