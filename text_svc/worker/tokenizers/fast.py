"""A model's tokenizer and chat template, read without transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shared.errors import InvalidModelError
from text_svc.formats.json_files import TOKENIZER_CONFIG, read_json_object
from text_svc.worker.tokenizers.chat_templates import chat_template
from text_svc.worker.tokenizers.detokenizer import FastDetokenizer, FastDetokenizers
from text_svc.worker.tokenizers.token_texts import TokenTexts
from text_svc.worker.tokenizing import has_patterns, tokenizing

SPECIAL_TOKENS = "special_tokens_map.json"


class FastTokenizer:
    """A `Tokenizer` from a model's files.

    Attributes:
        backend: the tokenizer of the `tokenizers` library.

    Args:
        folder: of the model; it must have a tokenizer.json.

    Raises:
        InvalidModelError: there is no tokenizer.json, or a file is broken.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.exists():
            raise InvalidModelError("the model has no tokenizer.json")
        try:
            self.backend = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001  # tokenizers raises nothing narrower
            raise InvalidModelError(f"tokenizer.json cannot be used: {error}") from None
        self.backend.no_truncation()
        self.backend.no_padding()
        self.may_be_slow = has_patterns(self.backend)
        self._detokenizers = FastDetokenizers(self.backend)
        self._token_texts: TokenTexts | None = None  # made when a caller wants log-probabilities
        config = read_json_object(folder / TOKENIZER_CONFIG) | read_json_object(
            folder / SPECIAL_TOKENS
        )
        self.special_tokens = {
            name: text
            for name, value in config.items()
            if name.endswith("_token") and (text := _token_text(value))
        }
        self.chat_template = chat_template(folder)

    @classmethod
    def of(cls, tokenizer: Any) -> FastTokenizer:
        """The same as one of transformers' tokenizers, which has a tokenizer.json to save."""
        with tempfile.TemporaryDirectory() as saved:
            tokenizer.save_pretrained(saved)
            return cls(Path(saved))

    def detokenizer(self, prompt: Sequence[int] = ()) -> FastDetokenizer:
        return self._detokenizers.after(prompt)

    def has_token(self, text: str) -> bool:
        return self.backend.token_to_id(text) is not None

    def special_tokens_in(self, texts: Sequence[str]) -> dict[int, str]:
        return {
            token: added.content
            for token, added in self.backend.get_added_tokens_decoder().items()
            if added.special and any(added.content in text for text in texts)
        }

    def token(self, token: int) -> tuple[str, bytes]:
        if self._token_texts is None:
            self._token_texts = TokenTexts(self.backend)
        return self._token_texts.text(token), self._token_texts.utf8(token)

    def encode(self, text: str, *, special: bool) -> list[int]:
        # Unlike `encode`, this releases the interpreter's lock.
        with tokenizing():
            batch = self.backend.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = batch[0].ids
        return ids


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
