"""Streams text from token ids, never half a character."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from itertools import islice

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# What decoders give for half a character.
HALF = "\ufffd"
# A character has at most four tokens; some vocabularies part one between two characters.
_CONTEXT_TOKENS = 8


def context_of(
    prompt: Sequence[int], skipped: Container[int], decode: Callable[[list[int]], str]
) -> list[int]:
    """The end of a prompt that is decoded before its answer, so that the answer goes on from it.

    A decoder leaves out the space before a text's first token, and SentencePiece models write one
    before most words: an answer that is decoded alone begins without the space.

    Args:
        prompt: token ids.
        skipped: tokens that do not separate the answer from the beginning of a text, such as
            special ones.
        decode: ids to text.

    Returns:
        As few tokens as end with a whole character; empty if the prompt has none.
    """
    tokens = (token for token in reversed(prompt) if token not in skipped)
    end = list(islice(tokens, _CONTEXT_TOKENS))[::-1]
    for size in range(1, len(end) + 1):
        if HALF not in decode(end[-size:]):
            return end[-size:]
    return []


class FastDetokenizers:
    """Makes the detokenizers of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_run_tokens = byte_run_tokens(tokenizer)
        self._special_tokens = special_tokens(tokenizer)
        # An answer's bytes would make one run with those of a prompt, and change them.
        self._no_context = self._special_tokens | self._byte_run_tokens
        self._any_text = self._first_text()

    def after(self, prompt: Sequence[int]) -> FastDetokenizer:
        """The detokenizer of an answer to a prompt; an empty one for a text that starts afresh."""
        context = context_of(prompt, self._no_context, self._tokenizer.decode)
        if not context and any(token not in self._special_tokens for token in prompt):
            context = self._any_text
        return FastDetokenizer(self._tokenizer, self._byte_run_tokens, context)

    def _first_text(self) -> list[int]:
        """A token of the vocabulary that is text; empty if there is none."""
        for token in range(self._tokenizer.get_vocab_size()):
            if context := context_of([token], self._no_context, self._tokenizer.decode):
                return context
        return []


def special_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The special tokens of a tokenizer, which leave no text."""
    added = tokenizer.get_added_tokens_decoder().items()
    return frozenset(token for token, what in added if what.special)


def byte_run_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that continue a run of bytes; empty if the tokenizer has no byte-fallback tokens.

    These are the byte-fallback tokens, such as <0xE9>, and the special tokens, which leave no text
    and so do not end a run.
    """
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    if not (single := {token for token in ids if token is not None}):
        return frozenset()
    return special_tokens(tokenizer) | single


class FastDetokenizer:
    """Decodes one generation piece by piece; the joined pieces equal the text decoded at once.

    Args:
        tokenizer: of the model.
        byte_run_tokens: see the function. The last byte of a byte run decides whether its first
            ones are characters, so the text of a run is held back until the run ends.
        context: tokens before the generation, see `context_of`; their text is left out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        byte_run_tokens: frozenset[int],
        context: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._byte_run_tokens = byte_run_tokens
        self._context = list(context)
        self._stream = DecodeStream(ids=self._context, skip_special_tokens=True)
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
        before: str = self._tokenizer.decode(self._context, skip_special_tokens=True)
        text: str = self._tokenizer.decode(self._context + self._ids, skip_special_tokens=True)
        return text[len(before) + self._sent :]
