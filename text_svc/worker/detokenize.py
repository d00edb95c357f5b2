"""Token ids to text while they come, never half a character."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


def byte_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the tokens that stand for one byte of a character, such as <0xE9>."""
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(token for token in ids if token is not None)


class Detokenizer:
    """Incremental decoding of one answer. The joined pieces equal the text decoded at once.

    Args:
        tokenizer: of the model.
        byte_tokens: see the function. A row of them is decoded as a whole, since its last byte
            decides whether its first ones are characters; so it is held back until it ends.
    """

    def __init__(self, tokenizer: Tokenizer, byte_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._byte_tokens = byte_tokens
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = 0
        self._sent = 0

    def add(self, token: int) -> str:
        """The text that this token completes; empty inside a character."""
        self._ids.append(token)
        if token in self._byte_tokens:
            return ""
        piece: str = self._stream.step(self._tokenizer, self._ids[self._decoded :]) or ""
        self._decoded = len(self._ids)
        self._sent += len(piece)
        return piece

    def rest(self) -> str:
        """What was held back, such as a character that the answer's end cut off."""
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text[self._sent :]
