"""Tiny models that read texts: BERT for every task, T5 and Marian."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import transformers as t
from tokenizers import processors

from tests.support.strange_models import change_json
from tests.support.tiny_parts import (
    BERT_TOKENS,
    CORPUS,
    SMALL,
    SMALL_SEQ2SEQ,
    bert_tokenizer,
    builder,
    fast_tokenizer,
    save,
    widen,
)

_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def _bert(folder: Path, kind: Any, **config: Any) -> None:
    tokenizer = bert_tokenizer()
    model = kind(t.BertConfig(vocab_size=len(tokenizer), **SMALL, **config))
    widen(model)
    save(folder, model, tokenizer)


@builder("bert")
def _(folder: Path) -> None:
    _bert(folder, t.BertModel)


@builder("modernbert")
def _(folder: Path) -> None:
    """Most of its layers attend to a window of 64 tokens."""
    tokenizer = bert_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.model_max_length = 512
    config = t.ModernBertConfig(
        vocab_size=len(tokenizer),
        **{**SMALL, "num_hidden_layers": 4},
        local_attention=64,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    model = t.ModernBertModel(config)
    widen(model)
    save(folder, model, tokenizer)


@builder("roberta")
def _(folder: Path) -> None:
    """Its 40 positions hold 39 tokens, and no file says so."""
    _roberta(folder, t.RobertaModel)


@builder("roberta-rank")
def _(folder: Path) -> None:
    _roberta(folder, t.RobertaForSequenceClassification, num_labels=1)


def _roberta(folder: Path, kind: Any, **config: Any) -> None:
    tokenizer = bert_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.model_max_length = int(1e30)
    sizes = {**SMALL, "max_position_embeddings": 40, "type_vocab_size": 1}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    model = kind(t.RobertaConfig(vocab_size=len(tokenizer), **sizes, **ids, **config))
    widen(model)
    save(folder, model, tokenizer)


@builder("bert-nli")
def _(folder: Path) -> None:
    names = ["contradiction", "neutral", "entailment"]
    _bert(folder, t.BertForSequenceClassification, **_labels(names))


@builder("bert-rank")
def _(folder: Path) -> None:
    _bert(folder, t.BertForSequenceClassification, num_labels=1)


@builder("bert-ner")
def _(folder: Path) -> None:
    _bert(folder, t.BertForTokenClassification, **_labels(["O", "B-PER", "I-PER", "B-LOC"]))


@builder("bert-qa")
def _(folder: Path) -> None:
    _bert(folder, t.BertForQuestionAnswering)
    change_json(folder / "tokenizer_config.json", model_input_names=_INPUTS)


@builder("xlnet-qa")
def _(folder: Path) -> None:
    """Texts come before questions, and the token for "not here" is the last one."""
    tokenizer = fast_tokenizer(BERT_TOKENS)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]:2",
        pair="$A [SEP] $B:1 [SEP]:1 [CLS]:2",
        special_tokens=[
            (each, tokenizer.convert_tokens_to_ids(each)) for each in ("[SEP]", "[CLS]")
        ],
    )
    tokenizer.model_max_length = 128
    config = t.XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=4, d_inner=64)
    model = t.XLNetForQuestionAnsweringSimple(config)
    widen(model)
    save(folder, model, tokenizer)
    change_json(folder / "tokenizer_config.json", model_input_names=_INPUTS, padding_side="left")


@builder("bert-mask")
def _(folder: Path) -> None:
    _bert(folder, t.BertForMaskedLM)


def _labels(names: list[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


@builder("t5")
def _(folder: Path) -> None:
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = fast_tokenizer(tokens)
    config = t.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = t.T5ForConditionalGeneration(config)
    widen(model)
    save(folder, model, tokenizer)


@builder("marian")
def _(folder: Path) -> None:
    import sentencepiece

    corpus, prefix = folder / "corpus.txt", folder / "pieces"
    corpus.write_text("\n".join(CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(prefix),
        vocab_size=90,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    shutil.copy(folder / "pieces.model", folder / "source.spm")
    (folder / "pieces.model").rename(folder / "target.spm")
    pieces = [line.split("\t")[0] for line in (folder / "pieces.vocab").read_text().splitlines()]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(["</s>", "<unk>", *pieces]))}
    vocabulary["<pad>"] = pad = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    for left in (corpus, folder / "pieces.vocab"):
        left.unlink()
    tokenizer = t.MarianTokenizer(
        source_spm=str(folder / "source.spm"),
        target_spm=str(folder / "target.spm"),
        vocab=str(folder / "vocab.json"),
        source_lang="en",
        target_lang="de",
    )
    config = t.MarianConfig(
        vocab_size=len(vocabulary),
        **SMALL_SEQ2SEQ,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        eos_token_id=0,
        forced_eos_token_id=0,
        max_position_embeddings=64,
    )
    model = t.MarianMTModel(config)
    widen(model)
    save(folder, model, tokenizer)


@builder("nllb")
def _(folder: Path) -> None:
    """A model of three languages."""
    letters = dict.fromkeys("▁abcdefghijklmnopqrstuvwxyz")
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
    tokenizer = t.NllbTokenizer(
        vocab=vocabulary, merges=[], extra_special_tokens=["eng_Latn", "deu_Latn", "fra_Latn"]
    )
    config = t.M2M100Config(
        vocab_size=len(tokenizer),
        **SMALL_SEQ2SEQ,
        max_position_embeddings=64,
        decoder_start_token_id=2,
    )
    model = t.M2M100ForConditionalGeneration(config)
    widen(model)
    widen(model)  # so that one token of a language is seen in the answer
    save(folder, model, tokenizer)
