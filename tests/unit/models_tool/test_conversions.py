"""Weights and tokenizers that are made into other formats."""

import struct
from pathlib import Path

import numpy as np
import pytest

from tools.models import smollm2, whisper


def test_rotary_order_is_the_inverse_of_llama_cpps() -> None:
    heads, size, columns = 3, 8, 5
    weight = np.random.default_rng(0).normal(size=(heads * size, columns)).astype(np.float32)
    # LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py
    permuted = weight.reshape(heads, 2, size // 2, columns).swapaxes(1, 2).reshape(weight.shape)
    assert not np.array_equal(permuted, weight)
    np.testing.assert_array_equal(smollm2.undo_rotary_order(permuted, heads), weight)


def test_the_tokenizer_check_fails_for_a_tokenizer_of_another_vocabulary(tmp_path: Path) -> None:
    fields = {
        "tokenizer.ggml.tokens": ["<|endoftext|>", *map(chr, range(33, 127)), "Ġ", "Ċ"],
        "tokenizer.ggml.token_type": [3] + [1] * 96,
        "tokenizer.ggml.merges": [],
    }
    smollm2.build_tokenizer(fields).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="does not give back"):
        smollm2.check_tokenizer(tmp_path / "tokenizer.json")


def model_bin(variables: dict[str, np.ndarray], spec: bytes = b"WhisperSpec") -> bytes:
    def text(value: bytes) -> bytes:
        return struct.pack("<H", len(value) + 1) + value + b"\0"

    data = struct.pack("<I", 6) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data += text(name.encode()) + struct.pack("<B", array.ndim)
        data += struct.pack(f"<{array.ndim}I", *array.shape) + struct.pack("<B", 4)
        data += struct.pack("<I", array.nbytes) + array.tobytes()
    return data


def test_whispers_variables_are_read_and_its_fused_projections_split() -> None:
    fused = np.arange(24, dtype=np.float16).reshape(6, 4)
    bias = np.arange(6, dtype=np.float16)
    scale = np.ones(4, np.float16)
    place = "decoder/layer_1/self_attention"
    variables = {
        f"{place}/linear_0/weight": fused,
        f"{place}/linear_0/bias": bias,
        f"{place}/layer_norm/gamma": scale,
        "decoder/num_heads": np.ones((), np.float16),
    }
    read = whisper.read_variables(model_bin(variables))
    assert list(read) == list(variables)
    tensors = dict(whisper.rename(read))
    layer = "model.decoder.layers.1"
    assert set(tensors) == {
        *(f"{layer}.self_attn.{part}_proj.weight" for part in "qkv"),
        *(f"{layer}.self_attn.{part}_proj.bias" for part in "qv"),
        f"{layer}.self_attn_layer_norm.weight",
    }
    np.testing.assert_array_equal(tensors[f"{layer}.self_attn.v_proj.weight"], fused[4:])
    np.testing.assert_array_equal(tensors[f"{layer}.self_attn.v_proj.bias"], bias[4:])
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    with pytest.raises(ValueError, match="this is MarianSpec"):
        whisper.read_variables(model_bin({}, b"MarianSpec"))
    with pytest.raises(KeyError):
        list(whisper.rename({"decoder/layer_0/unknown/weight": fused}))
