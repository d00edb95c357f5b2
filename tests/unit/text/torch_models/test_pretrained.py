"""Limits of a text's length: what a model's table of positions holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as t

from tests.support.tiny_parts import SMALL, SMALL_SEQ2SEQ
from text_svc.torch_models.pretrained import decoder_positions, max_positions

POSITIONS = 20
TINY = {**SMALL, "vocab_size": 40, "max_position_embeddings": POSITIONS}


def _distilbert() -> Any:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    config = t.DistilBertConfig(vocab_size=40, max_position_embeddings=POSITIONS, **sizes)
    return t.DistilBertModel(config)


def _gpt2() -> Any:
    config = t.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS)
    return t.GPT2LMHeadModel(config)


def _mpt() -> Any:
    config = t.MptConfig(vocab_size=40, d_model=32, n_layers=2, n_heads=4, max_seq_len=POSITIONS)
    return t.MptForCausalLM(config)


READERS: dict[str, tuple[int, Callable[[], Any]]] = {
    "bert": (20, lambda: t.BertModel(t.BertConfig(**TINY))),
    "distilbert": (20, _distilbert),
    "roberta": (18, lambda: t.RobertaModel(t.RobertaConfig(**TINY))),
    "roberta-3": (16, lambda: t.RobertaModel(t.RobertaConfig(**TINY, pad_token_id=3))),
    "roberta-lm": (18, lambda: t.RobertaForCausalLM(t.RobertaConfig(**TINY, is_decoder=True))),
    "xlm-roberta": (18, lambda: t.XLMRobertaModel(t.XLMRobertaConfig(**TINY))),
    "camembert": (18, lambda: t.CamembertModel(t.CamembertConfig(**TINY))),
    "data2vec": (18, lambda: t.Data2VecTextModel(t.Data2VecTextConfig(**TINY))),
    "mpnet": (18, lambda: t.MPNetModel(t.MPNetConfig(**TINY))),
    "esm": (18, lambda: t.EsmModel(t.EsmConfig(**TINY, pad_token_id=1))),
    "gpt2": (20, _gpt2),
    "opt": (20, lambda: t.OPTModel(t.OPTConfig(**TINY, ffn_dim=64, word_embed_proj_dim=32))),
    "mpt": (20, _mpt),
}


@pytest.mark.parametrize("name", READERS)
def test_a_text_of_the_limit_is_read_and_a_longer_one_is_not(name: str) -> None:
    expected, make = READERS[name]
    model = make().eval()
    limit = max_positions(model)
    assert limit == expected
    with torch.inference_mode():
        model(input_ids=torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))


def test_encoder_and_decoder_have_limits_of_their_own() -> None:
    sizes = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 16}
    config = t.LEDConfig(vocab_size=40, attention_window=8, **SMALL_SEQ2SEQ, **sizes)
    model = t.LEDForConditionalGeneration(config)
    assert (max_positions(model), decoder_positions(model)) == (64, 16)


def test_a_model_without_a_table_of_positions_has_no_limit() -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    assert max_positions(t.T5EncoderModel(t.T5Config(vocab_size=40, **sizes))) is None
