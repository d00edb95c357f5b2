"""SmolLM2 from GGUF to a Hugging Face directory: de-quantised float32 weights and the tokenizer.

A stand-in for a download from a model hub: `make models` has to work with package registries
alone, and the package that has this model has it as GGUF.

The tokenizer is built from the file's own tokens and merges. What transformers 5.5 makes of a
GGUF's tokenizer is wrong for this model (words split by <|endoftext|>, `Ġ` left in the text).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, quants
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL_TOKEN = 3  # gguf's token type for the ones that are never text
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def convert(inputs: Mapping[str, Path], out: Path) -> None:
    """Write config, weights, tokenizer and chat template to `out`; ValueError if a check fails."""
    (gguf,) = inputs.values()
    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    write_json(out / "config.json", model_config(fields))
    write_json(out / "generation_config.json", special_ids(fields))
    save_file(dict(weights(reader, fields)), out / "model.safetensors", {"format": "pt"})
    tokenizer = build_tokenizer(fields)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", tokenizer_config(fields))
    (out / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")
    check_tokenizer(out / "tokenizer.json")


def special_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids of the begin, end and padding tokens, by their names in configurations."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {key: int(fields[f"tokenizer.ggml.{name}_token_id"]) for key, name in names.items()}


def model_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json: the Llama architecture with this file's numbers."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pretraining_tp": 1,
        # Kept as float32 in the file: 9.99e-06 as a Python float is 1e-05 rounded.
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 10),
        "rope_scaling": None,
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "dtype": "float32",
        "use_cache": True,
        "vocab_size": fields["llama.vocab_size"],
        **special_ids(fields),
    }


def weights(
    reader: GGUFReader, fields: Mapping[str, Any]
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield every tensor under its Hugging Face name, as float32 in PyTorch's layout."""
    heads = {
        "attn_q": int(fields["llama.attention.head_count"]),
        "attn_k": int(fields["llama.attention.head_count_kv"]),
    }
    for tensor in reader.tensors:
        array = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        match tensor.name.split("."):
            case ["blk", layer, part, "weight"]:
                if part in heads:
                    array = undo_rotary_order(array, heads[part])
                yield f"model.layers.{layer}.{LAYER_NAMES[part]}.weight", array
            case [part, "weight"]:
                yield f"{MODEL_NAMES[part]}.weight", array
            case _:
                raise ValueError(f"unknown tensor {tensor.name}")


def undo_rotary_order(array: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Put the rows of a query or key projection back into halves.

    llama.cpp's converter interleaves each head's two rotary halves (its LlamaModel.permute).
    """
    rows, columns = array.shape
    halves = array.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(halves.reshape(rows, columns))


def build_tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """Return SmolLM2's tokenizer: single digits, byte-level BPE, nothing added at the start."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    return tokenizer


def tokenizer_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return tokenizer_config.json; the generic class leaves tokenizer.json as it is."""
    tokens = fields["tokenizer.ggml.tokens"]
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    return {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for key, name in named.items()},
    }


def check_tokenizer(path: Path) -> None:
    """Raise ValueError unless text comes back as it went in and prompts get the published ids."""
    tokenizer = Tokenizer.from_file(str(path))
    for text in (
        "What is gravity in 2024?\n日本 😀",
        "  def f(x):\n\treturn x**2  # été",
        "a" * 300,
    ):
        ids = tokenizer.encode(text).ids
        if tokenizer.decode(ids) != text or 0 in ids:
            raise ValueError(f"the tokenizer does not give back {text!r}")
    # Known of the published SmolLM2-135M-Instruct.
    expected = {
        "<|im_start|>user\n": [1, 4093, 198],
        "<|im_start|>assistant\n": [1, 520, 9531, 198],
        "Hello, world!": [19556, 28, 905, 17],
    }
    for text, ids in expected.items():
        if (found := tokenizer.encode(text).ids) != ids:
            raise ValueError(f"the tokenizer makes {found} of {text!r}, not {ids}")


def write_json(path: Path, value: Mapping[str, Any] | list[dict[str, Any]]) -> None:
    """Write a configuration file with sorted keys, so that its bytes never change."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
