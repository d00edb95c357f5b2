"""What single tokens of a vocabulary stand for."""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

from text_svc.worker.tokenizers.detokenizer import special_tokens

_BYTE = re.compile(r"<0x([0-9A-F]{2})>\Z")
_SPACE = "▁"


class TokenTexts:
    """The bytes that tokens stand for, in texts of UTF-8.

    Args:
        tokenizer: of the model. Its decoder says how its vocabulary writes bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        # Of the decoder alone: a whole vocabulary as JSON takes a good part of a second.
        decoder = tokenizer.decoder
        kinds = _types(json.loads(decoder.__getstate__())) if decoder else set()
        self._byte_level = "ByteLevel" in kinds

    def utf8(self, token: int) -> bytes:
        """The bytes of a token; empty for a special one or one that the vocabulary lacks."""
        written = self._tokenizer.id_to_token(token)
        if written is None or token in self._special:
            return b""
        if self._byte_level and all(character in _BYTES for character in written):
            return bytes(_BYTES[character] for character in written)
        if match := _BYTE.match(written):
            return bytes([int(match[1], 16)])
        text: str = written if self._byte_level else written.replace(_SPACE, " ")
        return text.encode()

    def text(self, token: int) -> str:
        """A token as it reads alone: half a character is U+FFFD, a special one as it is written."""
        if token in self._special:
            return str(self._tokenizer.id_to_token(token))
        return self.utf8(token).decode(errors="replace")


def _types(decoder: Any) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    nested = (_types(each) for each in decoder.get("decoders", ()))
    return {str(decoder.get("type"))}.union(*nested)


def _byte_characters() -> dict[str, int]:
    """The characters that byte-level vocabularies write for bytes, as GPT-2's."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


_BYTES = _byte_characters()
