"""The smallest configuration of an architecture, made by the names of its numbers.

The defaults of transformers are the sizes of published models. Here every class of configurations
is read for its fields, and those whose names say that they are a width, a count or a size get a
small value. What that does not fit is in `EXCEPTIONS`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 128
# Tokens that a text model reads, and what its windows see of them.
POSITIONS, WINDOW = 512, 16
IMAGE, PATCH = 32, 8
PAD, BOS, EOS, UNK = 0, 1, 2, 3
LABELS = 3
# Marks of images and sounds have ids from here on: letters that no text of the tests has.
OTHER_TOKENS = 104

# Small values by the names of fields, the first pattern that fits. None leaves the default.
_SIZES: tuple[tuple[str, Any], ...] = tuple(
    (rf"^({names})$", value)
    for names, value in (
        # Widths.
        ("hidden_size|d_model|n_embd|dim_model|emb_dim|lstm_dim|word_embed_proj_dim", 32),
        ("attention_hidden_size|d_embed|encoder_hidden_size|cross_attention_hidden_size", 32),
        (
            "embedding_size|pooler_hidden_size|input_embedding_size|bottleneck_size|mm_hidden_size",
            32,
        ),
        ("embed_dim|classifier_proj_size|n_embed|lru_width|output_hidden_size|backbone_hidden", 32),
        ("projection_dim|text_embed_dim|projector_dim|multimodal_projector_hidden", 16),
        ("intermediate_size|ffn_dim|d_ff|n_inner|d_inner|dim_ff|(en|de)coder_ffn_dim", 64),
        ("ffn_hidden_size|feed_forward_size|inner_dim|shared_intermediate_size|ff_dim", 64),
        ("(dense|expert)_(ffn|intermediate)_size|expert_ffn_hidden_size|mlp_(dim|hidden_size)", 64),
        (".*moe.*intermediate_size|shared_expert_intermediate_size|intermediate_size_mlp", 32),
        ("head_dim|global_head_dim|d_kv|kv_channels|attention_head_size|d_head|head_size", 8),
        ("attention_head_dim|linear_(key|value)_head_dim|index_head_dim|dim_head", 8),
        ("qk_nope_head_dim|qk_rope_head_dim|v_head_dim|rotary_dim|qk_head_dim", 8),
        ("q_lora_rank|kv_lora_rank|lora_rank|laurel_rank", 16),
        ("hidden_size_per_layer_input", 16),
        # Counts.
        ("num_hidden_layers|n_layers?|num_layers|(en|de)coder_(num_hidden_)?layers|depth", 2),
        ("num_(en|de)coder_(layers|blocks)|num_blocks|num_hidden_layers_decoder", 2),
        ("(en|de)coder_num_hidden_layers|num_(en|de)coder_layers", 2),
        ("num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads|num_q_heads", 4),
        ("(en|de)coder_num_attention_heads|num_(en|de)coder_attention_heads", 4),
        ("(en|de)coder_num_key_value_heads", 4),
        ("num_key_value_heads|n_kv_heads|num_kv_heads|multi_query_group_num", 2),
        ("num_global_key_value_heads", 2),
        ("linear_num_(key|value)_heads|index_n_heads", 2),
        ("(num|n_routed|num_local|moe_num|num_routed)_experts|n_experts|ffn_num_experts", 4),
        ("num_(experts_per_tok|experts_per_token|selected_experts)|moe_k|moe_topk|moe_top_k", 2),
        ("top_k_experts|topk_experts", 2),
        ("n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
        ("n_group|topk_group", 1),
        ("(first_k_dense_replace|num_dense_layers|moe_layer_start_index)", 1),
        ("num_nextn_predict_layers|num_mtp_modules|num_kv_shared_layers", 0),
        ("index_topk", 512),
        # Vocabularies and lengths.
        ("vocab_size|n_vocab|vocab_size_per_layer_input|decoder_vocab_size", VOCABULARY),
        ("max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length", POSITIONS),
        (
            "max_(source|target|encoder|decoder)_positions?(_embeddings)?|max_target_positions",
            POSITIONS,
        ),
        ("(en|de)coder_max_position_embeddings|original_max_position_embeddings", POSITIONS),
        ("sliding_window|sliding_window_size|attention_window_size|local_attention", WINDOW),
        ("window_size|attention_chunk_size", WINDOW),
        ("max_window_layers", 1),
        ("type_vocab_size", 2),
        # State-space models.
        ("state_size|ssm_state_size|mamba_d_state|d_state", 8),
        ("(mamba_)?chunk_size|mamba_chunk_size", 16),
        ("time_step_rank|mamba_dt_rank", 4),
        # Images and sounds.
        ("image_size", IMAGE),
        ("patch_size", PATCH),
        ("num_mel_bins", 16),
    )
)
# Ids of special tokens, which are those of `parts.tokenizer`.
_IDS = {
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "sep_token_id": EOS,
    "cls_token_id": BOS,
    "unk_token_id": UNK,
    "decoder_start_token_id": EOS,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
}
# What the names do not tell, by model type; a value that is a mapping belongs to a part.
_MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8}
EXCEPTIONS: Mapping[str, Mapping[str, Any]] = {
    "bamba": {**_MAMBA_HEADS, "attn_layer_indices": [1]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "hidden_size": 32},
    },
    "distilbert": {"dim": 32, "hidden_dim": 64},
    "fsmt": {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
    "funnel": {"block_sizes": [1, 1], "d_head": 8, "n_head": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_MAMBA_HEADS, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
        "hash_seed": 0,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 8,
        "shape_vocab_size": 8,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "zamba": {
        "num_hidden_layers": 6,
        "layer_types": ["mamba", "mamba", "hybrid"] * 2,
        "attn_layer_period": 3,
        "attn_layer_offset": 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 6,
        "layer_types": ["mamba", "mamba", "hybrid"] * 2,
        "adapter_rank": 8,
    },
}


class NoTinyConfigError(Exception):
    """The configuration cannot be made small in this way."""


def tiny_config(model_type: str, **more: Any) -> Any:
    """The configuration of a model type with small numbers; `more` replaces some of them."""
    return CONFIG_MAPPING[model_type](**_small(CONFIG_MAPPING[model_type], model_type) | more)


def _small(kind: Any, model_type: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    others = itertools.count(OTHER_TOKENS)
    for name, field in fields.items():
        if name in _IDS:
            values[name] = _IDS[name]
            continue
        if name in kind.sub_configs:
            continue
        if re.search(r"_token_(id|index)$", name) and isinstance(field.default, int):
            values[name] = next(others)
            continue
        for pattern, value in _SIZES:
            if re.match(pattern, name):
                default = field.default
                if (
                    isinstance(default, int | float)
                    or default is None
                    or default is dataclasses.MISSING
                ):
                    values[name] = value
                break
    values |= _layers(kind, fields)
    for name, part in kind.sub_configs.items():
        values[name] = _part(part, kind, name)
    exceptions = dict(EXCEPTIONS.get(model_type) or {})
    for name, value in exceptions.items():
        if isinstance(value, Mapping) and isinstance(values.get(name), dict):
            values[name] |= value
        else:
            values[name] = value
    return {name: value for name, value in values.items() if value is not _KEEP}


_KEEP = object()


def _part(part: Any, owner: Any, name: str) -> Any:
    if part is AutoConfig:
        default = getattr(owner(), name, None)
        if default is None:
            return _KEEP
        part = type(default)
    small = _small(part, part.model_type)
    return {"model_type": part.model_type, **small}


def _layers(kind: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """As few layers as there are types of them, twice each."""
    if "layer_types" not in fields:
        return {}
    try:
        default = kind().layer_types
    except Exception:  # noqa: BLE001  # a configuration without defaults
        return {}
    if not default:
        return {}
    types = list(dict.fromkeys(default))
    if len(types) == 1:
        types *= 2
    return {"layer_types": types, "num_hidden_layers": len(types)}
