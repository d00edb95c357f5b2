"""Tokenizers of odd folders: what tokenizer.json says, else what transformers 4.57 gave.

Its classes are not installed here, so their answers are written down.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, CLIPConfig, CLIPImageProcessorPil, CLIPProcessor
from transformers.convert_slow_tokenizer import import_protobuf

from shared.errors import InvalidModelError
from text_svc.formats.recipe import Recipe
from text_svc.options import LoadOptions
from text_svc.torch_models.pretrained import Pretrained
from text_svc.torch_models.tokenizer import load_tokenizer, set_inputs
from text_svc.worker.embeddings.tokenizer import SentenceTokenizer

BOS, EOS, UNK = 0, 1, 2


def bytes_tokenizer() -> Tokenizer:
    """A token for each byte, and for "ab": the ids of "ab c" are AB, SPACE and the one of "c"."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", "<unk>", *letters, "ab"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    return tokenizer


def bert_tokenizer(*, lower: bool) -> Tokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sea", "Sea", "sky", "sêa"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def save(
    folder: Path,
    model_type: str,
    config: dict[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def llama_config(name: str = "LlamaTokenizerFast", **more: Any) -> dict[str, Any]:
    return {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", **more}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral", "unheard-of"])
@pytest.mark.parametrize(
    "name", ["LlamaTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast", "NoSuchTokenizer"]
)
def test_a_class_of_another_kind_leaves_the_steps_of_the_file(
    tmp_path: Path, model_type: str, name: str
) -> None:
    own = bytes_tokenizer()
    tokenizer = load_tokenizer(save(tmp_path, model_type, llama_config(name), own))
    for text in ("Hello there", "  é 雪\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == own.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("name", "model_type"), [("BertTokenizer", "bert"), ("DistilBertTokenizerFast", "distilbert")]
)
@pytest.mark.parametrize(
    ("lower", "config", "ids"),
    [
        (False, {}, [6, 8]),
        (True, {}, [5, 5]),
        (False, {"do_lower_case": True}, [5, 5]),
        (True, {"do_lower_case": False}, [6, 8]),
        (True, {"do_lower_case": True, "strip_accents": False}, [5, 8]),
        (False, {"do_lower_case": "yes", "strip_accents": None}, [6, 8]),
    ],
)
def test_letters_are_lowered_where_the_file_or_a_configuration_says_so(
    tmp_path: Path, name: str, model_type: str, lower: bool, config: dict[str, Any], ids: list[int]
) -> None:
    config = {"tokenizer_class": name, **config}
    folder = save(tmp_path, model_type, config, bert_tokenizer(lower=lower))
    assert load_tokenizer(folder)("Sea sêa")["input_ids"] == [2, *ids, 3]


def test_a_general_class_changes_nothing_of_the_file(tmp_path: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}
    folder = save(tmp_path, "bert", config, bert_tokenizer(lower=False))
    assert load_tokenizer(folder)("Sea")["input_ids"] == [2, 6, 3]


def test_the_file_alone_is_enough(tmp_path: Path) -> None:
    bert = tmp_path / "bert"
    bert.mkdir()
    tokenizer = load_tokenizer(save(bert, "bert", None, bert_tokenizer(lower=False)))
    assert tokenizer("Sea")["input_ids"] == [2, 6, 3]
    assert (tokenizer.cls_token, tokenizer.pad_token_id) == ("[CLS]", 0)
    llama = tmp_path / "llama"
    llama.mkdir()
    save(llama, "llama", None, bytes_tokenizer())
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 9999}
    (llama / "config.json").write_text(json.dumps({"model_type": "llama", **ids}))
    tokenizer = load_tokenizer(llama)
    assert tokenizer.decode(tokenizer("a b")["input_ids"]) == "a b"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BOS, EOS)
    assert tokenizer.pad_token is None, "its id is not one"
    assert len(tokenizer) == bytes_tokenizer().get_vocab_size()


@pytest.mark.parametrize(
    ("name", "config", "ends"),
    [
        ("LlamaTokenizerFast", {}, (True, False)),
        ("LlamaTokenizer", {"add_bos_token": True, "add_eos_token": True}, (True, True)),
        ("LlamaTokenizerFast", {"add_bos_token": False}, (False, False)),
        ("GemmaTokenizerFast", {"add_eos_token": True}, (True, True)),
        ("CohereTokenizerFast", {}, (True, False)),
        ("GPTNeoXTokenizerFast", {}, (False, False)),
        ("GPTNeoXTokenizerFast", {"add_eos_token": True}, (False, True)),
        ("PreTrainedTokenizerFast", {"add_bos_token": True, "add_eos_token": True}, (False, False)),
        ("Qwen2TokenizerFast", {"add_eos_token": True}, (False, False)),
        # transformers 5 has written this one: its post-processor is in the file.
        ("LlamaTokenizer", {"add_eos_token": True, "backend": "tokenizers"}, (False, False)),
    ],
)
def test_the_beginning_and_the_end_are_those_of_transformers_4(
    tmp_path: Path, name: str, config: dict[str, Any], ends: tuple[bool, bool]
) -> None:
    folder = save(tmp_path, "llama", llama_config(name, **config), bytes_tokenizer())
    ids = load_tokenizer(folder)("ab")["input_ids"]
    (inside,) = load_tokenizer(folder)("ab", add_special_tokens=False)["input_ids"]
    first, last = ends
    assert ids == [BOS] * first + [inside] + [EOS] * last


def test_both_texts_of_a_pair_have_a_beginning_and_an_end(tmp_path: Path) -> None:
    config = llama_config(add_bos_token=True, add_eos_token=True)
    tokenizer = load_tokenizer(save(tmp_path, "llama", config, bytes_tokenizer()))
    (inside,) = tokenizer("ab", add_special_tokens=False)["input_ids"]
    pair = tokenizer("ab", "ab", return_token_type_ids=True, return_offsets_mapping=True)
    assert pair["input_ids"] == [BOS, inside, EOS] * 2
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1, 1]
    assert pair["offset_mapping"] == [(0, 0), (0, 2), (0, 0)] * 2
    cut = tokenizer("ab" * 9, truncation=True, max_length=4)["input_ids"]
    assert cut == [BOS, inside, inside, EOS], "the end is left when a text is cut"


def test_an_end_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": None, "add_bos_token": True}
    folder = save(tmp_path, "llama", config, bytes_tokenizer())
    with pytest.raises(InvalidModelError, match="add_bos_token, but the model has no bos_token"):
        load_tokenizer(folder)


def test_a_space_is_put_before_a_text_where_it_is_configured(tmp_path: Path) -> None:
    config = llama_config("GPT2TokenizerFast", add_prefix_space=True)
    tokenizer = load_tokenizer(save(tmp_path, "gpt2", config, bytes_tokenizer()))
    assert tokenizer.decode(tokenizer("ab")["input_ids"]) == " ab"


def test_special_tokens_and_sides_come_from_the_configuration(tmp_path: Path) -> None:
    config = llama_config(
        pad_token="</s>", padding_side="left", model_max_length=77, chat_template="{{ messages }}"
    )
    tokenizer = load_tokenizer(save(tmp_path, "llama", config, bytes_tokenizer()))
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (EOS, "left")
    assert (tokenizer.model_max_length, tokenizer.chat_template) == (77, "{{ messages }}")
    padded = tokenizer(["ab", "abab"], padding=True, add_special_tokens=False)
    assert padded["attention_mask"] == [[0, 1], [1, 1]]
    del config["padding_side"]
    folder = save(tmp_path, "llama", config, bytes_tokenizer())
    assert load_tokenizer(folder).padding_side == "left", "as Llama's class"


def test_a_token_for_padding_that_the_model_does_not_have_is_none(tmp_path: Path) -> None:
    own = bytes_tokenizer()
    folder = save(tmp_path, "llama", llama_config(pad_token="[PAD]"), own)
    assert load_tokenizer(folder).pad_token_id == own.get_vocab_size()
    config = {"model_type": "llama", "vocab_size": own.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(folder).pad_token_id is None


def test_a_class_with_methods_leaves_the_steps_of_the_file(tmp_path: Path) -> None:
    for name in ("CLIPTokenizerFast", "WhisperTokenizerFast"):
        folder = save(tmp_path, "clip", {"tokenizer_class": name}, bytes_tokenizer())
        tokenizer = load_tokenizer(folder)
        assert tokenizer.decode(tokenizer("ab c")["input_ids"]) == "ab c"


async def test_texts_are_cut_at_the_side_that_is_configured(tmp_path: Path) -> None:
    for side, kept in (("left", [7, 8]), ("right", [5, 6])):
        config = {"tokenizer_class": "BertTokenizer", "truncation_side": side}
        folder = save(tmp_path, "bert", config, bert_tokenizer(lower=False))
        tokenizer = load_tokenizer(folder)
        text = "sea Sea sky sêa"
        cut = tokenizer(text, truncation=True, max_length=4)["input_ids"]
        assert cut == [2, *kept, 3]
        tokenizer = load_tokenizer(folder)
        sentences = SentenceTokenizer(tokenizer.backend_tokenizer, Recipe(), 4)
        assert await sentences.encode([text]) == [cut]


def model_with(*inputs: str, **config: Any) -> Any:
    """A model whose `forward` has these inputs."""
    scope: dict[str, Any] = {}
    exec(f"def forward({', '.join(inputs)}): ...", scope)
    return SimpleNamespace(forward=scope["forward"], config=SimpleNamespace(**config))


@pytest.mark.parametrize(
    ("name", "inputs", "config", "types"),
    [
        ("BertTokenizer", ("input_ids", "token_type_ids"), {"type_vocab_size": 2}, True),
        ("PreTrainedTokenizerFast", ("input_ids", "token_type_ids"), {"type_vocab_size": 2}, True),
        ("AlbertTokenizerFast", ("input_ids", "token_type_ids"), {"type_vocab_size": 2}, True),
        ("PreTrainedTokenizerFast", ("input_ids", "token_type_ids"), {"type_vocab_size": 1}, False),
        ("PreTrainedTokenizerFast", ("input_ids", "attention_mask"), {}, False),
        ("RobertaTokenizerFast", ("input_ids", "token_type_ids"), {"type_vocab_size": 2}, False),
        (None, ("input_ids", "token_type_ids"), {"type_vocab_size": 2}, True),
    ],
)
def test_types_of_tokens_go_to_models_that_take_them(
    tmp_path: Path, name: str | None, inputs: tuple[str, ...], config: dict[str, Any], types: bool
) -> None:
    own = {"tokenizer_class": name} if name else None
    folder = save(tmp_path, "bert", own, bert_tokenizer(lower=False))
    tokenizer = load_tokenizer(folder)
    set_inputs(tokenizer, folder, model_with(*inputs, **config))
    encoded = tokenizer("Sea", "sky")
    assert encoded["input_ids"] == [2, 6, 3, 7, 3]
    assert encoded.get("token_type_ids") == ([0, 0, 0, 1, 1] if types else None)


@pytest.mark.parametrize(
    ("model_type", "config", "missing"),
    [
        ("bert", None, "vocab.txt"),
        ("deberta-v2", {"tokenizer_class": "DebertaV2Tokenizer"}, "spm.model"),
        ("llama", None, "tokenizer.model"),
        ("gemma", None, "tokenizer.model"),
        ("roberta", None, "vocab.json, merges.txt"),
        ("marian", None, "source.spm, target.spm, vocab.json"),
        ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}, "tokenizer.model"),
    ],
)
def test_a_folder_without_a_vocabulary_is_refused(
    tmp_path: Path, model_type: str, config: dict[str, Any] | None, missing: str
) -> None:
    folder = save(tmp_path, model_type, config)
    with pytest.raises(
        InvalidModelError, match=f"no vocabulary: neither tokenizer.json nor {missing}"
    ):
        load_tokenizer(folder)


def test_a_vocabulary_of_mistral_alone_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = save(tmp_path, "mistral")
    (folder / "tekken.json").write_text("{}")
    with pytest.raises(InvalidModelError, match=r"tekken\.json alone is not enough"):
        load_tokenizer(folder)


def words(*tokens: str) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(("[UNK]", *tokens))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_vocabulary_of_special_tokens_alone_is_refused(tmp_path: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    folder = save(tmp_path, "bert", config, words())
    with pytest.raises(InvalidModelError, match=r"every word becomes \[UNK\]"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InvalidModelError, match=r"every word becomes unknown"):
        load_tokenizer(save(tmp_path, "gpt_neox", None, words()))
    (tmp_path / "tokenizer.json").unlink()
    folder = save(tmp_path, "bert", {"tokenizer_class": "BertTokenizer"})
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(InvalidModelError, match=r"every word becomes \[UNK\]"):
        load_tokenizer(folder)


@pytest.mark.parametrize("tokens", [("雪",), ("x",), ("ᚠ", "ᚢ"), ("🙂",), ("token17", "token18")])
def test_a_small_vocabulary_is_one(tmp_path: Path, tokens: tuple[str, ...]) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    tokenizer = load_tokenizer(save(tmp_path, "bert", config, words(*tokens)))
    assert tokenizer(tokens[-1])["input_ids"] == [len(tokens)]


# Pieces of a SentencePiece model, the best first. "\u2581" is a space before a word.
PIECES = ("\u2581the", "\u2581sea", "th", "\u2581", "t", "h", "e", "s", "a", "S", ",", "ê", "r")


def save_pieces(path: Path, special: list[str], *, pairs: bool) -> None:
    """A model of SentencePiece: the special pieces, bytes if it is one of pairs, then PIECES."""
    proto = import_protobuf().ModelProto()
    kinds = {"<unk>": 2, "[UNK]": 2}
    for piece in special:
        proto.pieces.add(piece=piece, score=0, type=kinds.get(piece, 3))
    for byte in range(256) if pairs else ():
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=6)
    for number, piece in enumerate(PIECES):
        proto.pieces.add(piece=piece, score=-1.0 - number, type=1)
    proto.trainer_spec.model_type = 2 if pairs else 1
    proto.trainer_spec.byte_fallback = pairs
    # A table that replaces no character.
    proto.normalizer_spec.precompiled_charsmap = (1024).to_bytes(4, "little") + bytes(1024)
    (unknown,) = (number for number, piece in enumerate(special) if piece in kinds)
    proto.trainer_spec.unk_id, proto.trainer_spec.unk_piece = unknown, special[unknown]
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("model_type", "name", "file", "special", "ids"),
    json.loads((Path(__file__).parent / "sentencepiece_ids.json").read_text()),
)
@pytest.mark.parametrize("configured", [True, False])
def test_models_of_sentencepiece_are_read_as_by_transformers_4(
    tmp_path: Path,
    model_type: str,
    name: str,
    file: str,
    special: list[str],
    ids: list[list[int]],
    configured: bool,
) -> None:
    folder = save(tmp_path, model_type, {"tokenizer_class": name} if configured else None)
    pairs = file == "tokenizer.model"
    save_pieces(folder / file, special, pairs=pairs)
    tokenizer = load_tokenizer(folder)
    single, pair = tokenizer("the Sea, ê")["input_ids"], tokenizer("the", "sea")["input_ids"]
    assert [single, pair] == ids


def test_a_model_of_sentencepiece_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama", llama_config())
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\n" * 9)
    with pytest.raises(InvalidModelError, match="not a model of SentencePiece"):
        load_tokenizer(folder)


def test_languages_are_those_of_the_class(tmp_path: Path) -> None:
    tokenizer = words("eng_Latn", "fra_Latn", "sea", "<s>", "</s>")
    folder = save(tmp_path, "m2m_100", {"tokenizer_class": "NllbTokenizerFast"}, tokenizer)
    english, french, sea, end = 1, 2, 3, 5
    loaded = load_tokenizer(folder)
    assert loaded("sea")["input_ids"] == [english, sea, end]
    loaded.src_lang = "fra_Latn"
    assert loaded("sea")["input_ids"] == [french, sea, end]
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder)("sea")["input_ids"] == [english, sea, end], "told by the tokens"
    words("__en__", "sea").save(str(folder / "tokenizer.json"))
    with pytest.raises(
        InvalidModelError, match=r"sentencepiece\.bpe\.model, which it does not have"
    ):
        load_tokenizer(folder)


def test_languages_without_ids_are_refused(tmp_path: Path) -> None:
    config: dict[str, Any] = {"tokenizer_class": "NllbTokenizer", "src_lang": "eng_Latn"}
    folder = save(tmp_path, "m2m_100", config)
    save_pieces(folder / "sentencepiece.bpe.model", ["<unk>", "<s>", "</s>"], pairs=True)
    with pytest.raises(InvalidModelError, match="no added_tokens_decoder, which has the ids"):
        load_tokenizer(folder)
    first = 3 + 256 + len(PIECES) + 1
    added = {first: "ace_Arab", first + 1: "eng_Latn", first + 2: "<mask>"}
    config["added_tokens_decoder"] = {
        number: {"content": token, "special": True} for number, token in added.items()
    }
    save(tmp_path, "m2m_100", config)
    loaded = load_tokenizer(folder)
    assert loaded.convert_tokens_to_ids(list(added.values())) == list(added)
    ids = loaded("the")["input_ids"]
    assert (ids[0], ids[-1]) == (first + 1, 2), "the language before, the end behind"


def test_processors_have_the_same_tokenizer(tmp_path: Path) -> None:
    own = words("sea", "sky", "<|startoftext|>", "<|endoftext|>")
    folder = save(tmp_path, "clip", {"tokenizer_class": "PreTrainedTokenizerFast"}, own)
    CLIPConfig().save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    config = json.loads((folder / "preprocessor_config.json").read_text())
    config["processor_class"] = CLIPProcessor.__name__
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    source = Pretrained(folder, LoadOptions())
    assert source.read(AutoConfig).model_type == "clip"
    assert source.read(CLIPProcessor).tokenizer("sky sea")["input_ids"] == [2, 1]
