"""Long texts are tokenized in pieces, with the ids of the whole."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from text_svc.formats.recipe import Recipe
from text_svc.worker import tokenizing
from text_svc.worker.embeddings import tokenizer as module
from text_svc.worker.embeddings.tokenizer import SentenceTokenizer

PIECE = 100
MAX_TOKENS = 12
TEXTS = [
    *("", "hello", ". " * 50, "." * 99, "." * 100, "." * 101, "." * 5000, " " * 5000 + "x"),
    *("hello world, a cat. " * 200, "a" * 5000, "a" * 300 + "." * 5000, "é雪 " * 1000),
    *("many small texts " * 3,) * 20,
]


def with_specials(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    return tokenizer


def words() -> Tokenizer:
    """Like BERT's: each sign is a token, and a long word is one."""
    vocabulary = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, ".": 3, "hello": 4, "cat": 5, "a": 6}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return with_specials(tokenizer)


def pairs() -> Tokenizer:
    """Like GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["[CLS]", "[SEP]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return with_specials(tokenizer)


class Counted:
    """A tokenizer that notes the most characters it was given at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        self.most = max(self.most, sum(map(len, texts)))
        return self._tokenizer.encode_batch(texts, **options)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.most = max(self.most, sum(map(len, texts)))
        return self._tokenizer.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("make", [words, pairs])
async def test_the_ids_are_those_of_the_whole(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (module, tokenizing):
        monkeypatch.setattr(each, "PIECE_CHARACTERS", PIECE)
    whole = make()
    whole.enable_truncation(MAX_TOKENS)
    ids = await SentenceTokenizer(make(), Recipe(), MAX_TOKENS).encode(TEXTS)
    assert ids == [each.ids for each in whole.encode_batch([text.strip() for text in TEXTS])]


async def test_a_text_of_many_tokens_is_not_tokenized_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for each in (module, tokenizing):
        monkeypatch.setattr(each, "PIECE_CHARACTERS", PIECE)
    counted: Any = Counted(words())
    tokenizer = SentenceTokenizer(counted, Recipe(), MAX_TOKENS)
    await tokenizer.encode(["." * 100_000, *(["...."] * 1000)])
    assert counted.most == PIECE
