from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tests.support import tiny_text
from text_svc.worker.tokenizers.detokenizer import (
    FastDetokenizer,
    byte_run_tokens,
)


def byte_fallback_tokenizer() -> Tokenizer:
    """As SentencePiece models with byte tokens decode: "▁" is a space, the first one is cut off."""
    words = ["<unk>", "▁", "▁the", "sea", "▁sea", "é", "雪", "▁雪"]
    vocabulary = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE({word: index for index, word in enumerate(vocabulary)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@pytest.fixture(scope="module", params=["byte-level", "byte-fallback", "SmolLM2"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param == "byte-fallback":
        return byte_fallback_tokenizer()
    if request.param == "SmolLM2":
        models_folder: Path = request.getfixturevalue("models")
        return Tokenizer.from_file(
            str(models_folder / "text/HuggingFaceTB/SmolLM2-135M-Instruct/tokenizer.json")
        )
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_text.save_tokenizer(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = FastDetokenizer(tokenizer, byte_run_tokens(tokenizer))
    return [*(detokenizer.add(token) for token in ids), detokenizer.rest()]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_joined_pieces_equal_the_text_decoded_at_once(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    token = st.integers(0, tokenizer.get_vocab_size() - 1)
    ids = data.draw(st.lists(token, max_size=24))
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30))
def test_no_piece_of_real_text_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    whole = tokenizer.decode(ids)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == whole
    assert "\ufffd" in whole or not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_byte_tokens_comes_when_their_run_ends() -> None:
    tokenizer = byte_fallback_tokenizer()
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "雪".encode()]
    sea = tokenizer.token_to_id("sea")
    assert pieces_of(tokenizer, [*ids, sea, sea]) == ["", "", "", "雪sea", "sea", ""]


def test_a_character_that_the_end_cuts_off_is_sent_at_the_end() -> None:
    tokenizer = byte_fallback_tokenizer()
    sea = tokenizer.token_to_id("sea")
    half = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "雪".encode()[:2]]
    assert pieces_of(tokenizer, [sea, *half]) == ["sea", "", "", "\ufffd\ufffd"]


def test_a_special_token_does_not_part_a_byte_run() -> None:
    tokenizer = byte_fallback_tokenizer()
    first, second = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in (0x41, 0xE9))
    ids = [first, tokenizer.token_to_id("<s>"), second, tokenizer.token_to_id("sea")]
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids) == "\ufffd\ufffdsea"
