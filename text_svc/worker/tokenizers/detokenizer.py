"""Streams text from token ids, never half a character."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


def byte_run_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that continue a run of bytes; empty if the tokenizer has no byte-fallback tokens.

    These are the byte-fallback tokens, such as <0xE9>, and the special tokens, which leave no text
    and so do not end a run.
    """
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    if not (single := {token for token in ids if token is not None}):
        return frozenset()
    added = tokenizer.get_added_tokens_decoder().items()
    return frozenset(single | {token for token, what in added if what.special})


class FastDetokenizer:
    """Decodes one generation piece by piece; the joined pieces equal the text decoded at once.

    Args:
        tokenizer: of the model.
        byte_run_tokens: see the function. The last byte of a byte run decides whether its first
            ones are characters, so the text of a run is held back until the run ends.
    """

    def __init__(self, tokenizer: Tokenizer, byte_run_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._byte_run_tokens = byte_run_tokens
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = 0
        self._sent = 0

    def add(self, token: int) -> str:
        self._ids.append(token)
        if token in self._byte_run_tokens:
            return ""
        piece: str = self._stream.step(self._tokenizer, self._ids[self._decoded :]) or ""
        self._decoded = len(self._ids)
        self._sent += len(piece)
        return piece

    def rest(self) -> str:
        """The text that was held back, such as a character that is not complete."""
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text[self._sent :]
