from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.support import tiny_text
from text_svc.worker.tokenizers.detokenizer import (
    FastDetokenizer,
    FastDetokenizers,
    byte_run_tokens,
    special_tokens,
)
from text_svc.worker.tokenizers.slow import SlowTokenizer

# Of each property, for each tokenizer: their kinds of tokens are few.
EXAMPLES = 100


def metaspace_tokenizer() -> Tokenizer:
    """As Metaspace decodes, the other way in which SentencePiece models are written."""
    tokenizer = tiny_text.byte_fallback_tokenizer()
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer


def word_piece_tokenizer() -> Tokenizer:
    words = ["[UNK]", "the", "sea", "##s", "of", "snow"]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    return tokenizer


OTHERS = {
    "byte-fallback": tiny_text.byte_fallback_tokenizer,
    "metaspace": metaspace_tokenizer,
    "word pieces": word_piece_tokenizer,
}


@pytest.fixture(scope="module", params=["byte-level", *OTHERS, "SmolLM2"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param in OTHERS:
        return OTHERS[request.param]()
    if request.param == "SmolLM2":
        models_folder: Path = request.getfixturevalue("models")
        return Tokenizer.from_file(
            str(models_folder / "text/HuggingFaceTB/SmolLM2-135M-Instruct/tokenizer.json")
        )
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_text.save_tokenizer(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def pieces_of(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = FastDetokenizer(tokenizer, byte_run_tokens(tokenizer))
    if prompt is not None:
        detokenizer = FastDetokenizers(tokenizer).after(prompt)
    return [*(detokenizer.add(token) for token in ids), detokenizer.rest()]


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_joined_pieces_equal_the_text_decoded_at_once(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    token = st.integers(0, tokenizer.get_vocab_size() - 1)
    ids = data.draw(st.lists(token, max_size=24))
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_an_answer_continues_its_prompt(tokenizer: Tokenizer, data: st.DataObject) -> None:
    token = st.integers(0, tokenizer.get_vocab_size() - 1)
    text = data.draw(st.text("the sea of snow é雪\n", max_size=12))
    prompt = tokenizer.encode(text, add_special_tokens=False).ids
    prompt += data.draw(st.sampled_from([[], special_tokens(tokenizer)]))
    answer = data.draw(st.lists(token, max_size=12))
    joined = "".join(pieces_of(tokenizer, answer, prompt))
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + answer)
    # The answer's bytes could break those of the prompt.
    assume(not byte_run_tokens(tokenizer).intersection(prompt[-1:]) or "\ufffd" not in whole)
    assert joined == whole.removeprefix(before)


@settings(max_examples=EXAMPLES)
@given(prompt=st.text("the sea é雪\ufffd", max_size=12), answer=st.text("the sea é雪", max_size=12))
def test_half_a_character_is_never_sent_after_a_prompt(
    tokenizer: Tokenizer, prompt: str, answer: str
) -> None:
    ids = tokenizer.encode(answer, add_special_tokens=False).ids
    before = tokenizer.encode(prompt, add_special_tokens=False).ids
    pieces = pieces_of(tokenizer, ids, before)
    assert "\ufffd" in tokenizer.decode(ids) or not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("make", [tiny_text.byte_fallback_tokenizer, metaspace_tokenizer])
def test_the_space_after_a_prompt_is_kept(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    the, sea, start = (tokenizer.token_to_id(each) for each in ("▁the", "▁sea", "<s>"))
    assert pieces_of(tokenizer, [sea, sea], [start, the]) == [" sea", " sea", ""]
    assert pieces_of(tokenizer, [sea, sea], [the, start]) == [" sea", " sea", ""]
    assert pieces_of(tokenizer, [sea, sea], [start]) == ["sea", " sea", ""], "no text before it"
    assert pieces_of(tokenizer, [sea, sea], []) == ["sea", " sea", ""]


def test_the_bytes_of_a_prompt_do_not_mix_with_those_of_its_answer() -> None:
    tokenizer = tiny_text.byte_fallback_tokenizer()
    snow = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "雪".encode()]
    sea = tokenizer.token_to_id("▁sea")
    assert pieces_of(tokenizer, [*snow, sea], snow) == ["", "", "", "雪 sea", ""]
    assert pieces_of(tokenizer, [snow[0], sea], snow) == ["", "\ufffd sea", ""]
    assert pieces_of(tokenizer, [sea], snow) == [" sea", ""]


@pytest.mark.parametrize("make", [tiny_text.byte_fallback_tokenizer, metaspace_tokenizer])
def test_tokenizers_of_transformers_keep_it_too(make: Callable[[], Tokenizer]) -> None:
    made = make()
    the, sea, start = (made.token_to_id(each) for each in ("▁the", "▁sea", "<s>"))
    slow = SlowTokenizer(PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>"))
    for prompt, pieces in (([start, the], [" sea", " sea"]), ([], ["sea", " sea"])):
        detokenizer = slow.detokenizer(prompt)
        assert [detokenizer.add(sea), detokenizer.add(sea)] == pieces
        assert detokenizer.rest() == ""


@settings(max_examples=EXAMPLES)
@given(text=st.text(max_size=30))
def test_no_piece_of_real_text_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    whole = tokenizer.decode(ids)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == whole
    assert "\ufffd" in whole or not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_byte_tokens_comes_when_their_run_ends() -> None:
    tokenizer = tiny_text.byte_fallback_tokenizer()
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "雪".encode()]
    sea = tokenizer.token_to_id("sea")
    assert pieces_of(tokenizer, [*ids, sea, sea]) == ["", "", "", "雪sea", "sea", ""]


def test_a_character_that_the_end_cuts_off_is_sent_at_the_end() -> None:
    tokenizer = tiny_text.byte_fallback_tokenizer()
    sea = tokenizer.token_to_id("sea")
    half = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "雪".encode()[:2]]
    assert pieces_of(tokenizer, [sea, *half]) == ["sea", "", "", "\ufffd\ufffd"]


def test_a_special_token_does_not_part_a_byte_run() -> None:
    tokenizer = tiny_text.byte_fallback_tokenizer()
    first, second = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in (0x41, 0xE9))
    ids = [first, tokenizer.token_to_id("<s>"), second, tokenizer.token_to_id("sea")]
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids) == "\ufffd\ufffdsea"
