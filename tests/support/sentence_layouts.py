"""Tiny embedding models in the layouts that sentence-transformers has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as t
from safetensors.torch import save_file

from tests.support import tiny_models
from tests.support.strange_models import change_json
from tests.support.tiny_parts import BERT_TOKENS, SMALL, bert_tokenizer, fast_tokenizer, save, widen

IDENTITY = "torch.nn.modules.linear.Identity"
PROMPTS: dict[str, Any] = {"prompts": {"query": "a photo of the "}, "default_prompt_name": "query"}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def layout(folder: Path, modules: Mapping[str, str], own: Mapping[str, Any] | None = None) -> None:
    """Writes modules.json, of kinds by their folders, and the model's own configuration."""
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules.items())
    ]
    write(folder / "modules.json", listed)
    if own:
        write(folder / "config_sentence_transformers.json", own)


def pooling(folder: Path, **config: Any) -> None:
    modes = {} if "pooling_mode" in config else {"pooling_mode_mean_tokens": True}
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 32, **modes, **config})


def sub_folder(folder: Path) -> None:
    tiny_models.build("bert", folder / "0_Transformer")
    limits = {"max_seq_length": 12, "do_lower_case": True}
    write(folder / "0_Transformer/sentence_roberta_config.json", limits)
    pooling(folder, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    layout(folder, {"0_Transformer": "Transformer", "1_Pooling": "Pooling"})


def layers(folder: Path) -> None:
    """A linear layer, a normalisation with weights, one of the length, and a linear layer."""
    tiny_models.build("bert", folder)
    pooling(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_N": "LayerNorm"}
    layout(folder, kinds | {"4_D": "Dropout", "5_N": "Normalize", "6_Dense": "Dense"})
    chance = torch.Generator().manual_seed(0)
    for name, size in (("2_Dense", (16, 32)), ("6_Dense", (8, 16))):
        activation = "torch.nn.modules.activation.Tanh" if size[0] == 16 else IDENTITY
        shape = {"in_features": size[1], "out_features": size[0], "bias": False}
        write(folder / name / "config.json", shape | {"activation_function": activation})
        weights = torch.randn(size, generator=chance)
        save_file({"linear.weight": weights}, folder / name / "model.safetensors")
    write(folder / "3_N/config.json", {"dimension": 16})
    norm = {f"norm.{name}": torch.randn(16, generator=chance) for name in ("weight", "bias")}
    save_file(norm, folder / "3_N/model.safetensors")
    write(folder / "4_D/config.json", {"dropout": 0.5})


def layer_mean(folder: Path) -> None:
    tiny_models.build("bert", folder)
    change_json(folder / "config.json", output_hidden_states=True)
    config = {"word_embedding_dimension": 32, "layer_start": 1, "num_hidden_layers": 2}
    write(folder / "2_Mean/config.json", config)
    save_file({"layer_weights": torch.tensor([0.3, 2.0])}, folder / "2_Mean/model.safetensors")
    pooling(folder)
    layout(folder, {"": "Transformer", "2_Mean": "WeightedLayerPooling", "1_Pooling": "Pooling"})


def prompt_left_out(folder: Path) -> None:
    tiny_models.build("bert", folder)
    pooling(
        folder,
        include_prompt=False,
        pooling_mode_max_tokens=True,
        pooling_mode_weightedmean_tokens=True,
        pooling_mode_lasttoken=True,
    )
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling"}, PROMPTS)


def static(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    (folder / "0_StaticEmbedding").mkdir(parents=True)
    tokenizer.backend_tokenizer.save(str(folder / "0_StaticEmbedding/tokenizer.json"))
    chance = torch.Generator().manual_seed(0)
    table = {"embedding.weight": torch.randn((len(tokenizer), 16), generator=chance)}
    save_file(table, folder / "0_StaticEmbedding/model.safetensors")
    layout(folder, {"0_StaticEmbedding": "StaticEmbedding", "1_N": "Normalize"}, PROMPTS)


def model2vec(folder: Path) -> None:
    static(folder)
    inner = folder / "0_StaticEmbedding"
    chance = torch.Generator().manual_seed(0)
    table = {"embeddings": torch.randn((len(bert_tokenizer()), 16), generator=chance)}
    save_file(table, folder / "model.safetensors")
    (inner / "tokenizer.json").rename(folder / "tokenizer.json")
    write(folder / "config.json", {"model_type": "model2vec", "architectures": ["StaticModel"]})
    layout(folder, {".": "StaticEmbedding"})


def last_token(folder: Path) -> None:
    """As Qwen3-Embedding: the last token of a decoder, padded on the left."""
    tokenizer = fast_tokenizer(BERT_TOKENS, around=("[CLS]", "[SEP]"))
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 64
    shape = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer)}
    model = t.Qwen3Model(t.Qwen3Config(**shape, pad_token_id=0))
    widen(model)
    save(folder, model, tokenizer)
    pooling(folder, pooling_mode_mean_tokens=False, pooling_mode_lasttoken=True)
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling", "2_N": "Normalize"})


def sliding_windows(folder: Path) -> None:
    """As EmbeddingGemma: tokens attend to both sides, in every second layer to near ones."""
    tokenizer = fast_tokenizer(BERT_TOKENS, around=("[CLS]", "[SEP]"))
    tokenizer.truncation_side = "left"
    tokenizer.model_max_length = 64
    shape = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer)}
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
    config = t.Gemma3TextConfig(**shape, **kinds, pad_token_id=0, use_bidirectional_attention=True)
    model = t.Gemma3TextModel(config)
    widen(model)
    save(folder, model, tokenizer)
    pooling(folder)
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling"})


def encoder_of_t5(folder: Path) -> None:
    tiny_models.build("t5", folder)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 600})
    pooling(folder)
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling"})


def mpnet(folder: Path) -> None:
    """An architecture that computes attention in its own way."""
    tokenizer = bert_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    model = t.MPNetModel(t.MPNetConfig(**SMALL, vocab_size=len(tokenizer), pad_token_id=0))
    widen(model)
    save(folder, model, tokenizer)
    pooling(folder)
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling"})


LAYOUTS: dict[str, Callable[[Path], None]] = {
    each.__name__: each
    for each in (sub_folder, layers, layer_mean, prompt_left_out, static, model2vec)
} | {each.__name__: each for each in (last_token, sliding_windows, encoder_of_t5, mpnet)}
