"""Whisper from CTranslate2 to a Hugging Face directory, as float32.

A stand-in for a download from a model hub: `make models` has to work with package registries
alone, and the package that has this model has it in CTranslate2's format.

CTranslate2's `model.bin` (its `src/models/model.cc`) is a header and then each variable: name,
shape, type and bytes. It keeps projections of the same input fused; here they come apart again.
"""

import json
import mmap
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from tools.models.smollm2 import write_json

Array = npt.NDArray[Any]

DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by CTranslate2's type number
HEAD_SIZE = 64  # in every published Whisper
KINDS = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "encodings": "weight",
}
MODULES = {
    "conv1": "conv1",
    "conv2": "conv2",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "layer_norm": "layer_norm",
}
LAYER_MODULES = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
PREPROCESSOR_CONFIG = {
    "chunk_length": 30,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "processor_class": "WhisperProcessor",
    "return_attention_mask": False,
    "sampling_rate": 16000,
}


def convert(inputs: Mapping[str, Path], out: Path) -> None:
    """Write config, weights, tokenizer and feature extractor of an English Whisper to `out`."""
    (source,) = inputs.values()
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    added = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    ids = {token["content"]: int(token["id"]) for token in added}
    with (source / "model.bin").open("rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = dict(rename(read_variables(data)))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    write_json(out / "config.json", model_config(tensors, ids))
    write_json(out / "generation_config.json", generation_config(settings, ids))
    write_json(out / "tokenizer_config.json", tokenizer_config(list(ids)))
    write_json(out / "preprocessor_config.json", PREPROCESSOR_CONFIG)
    shutil.copyfile(source / "tokenizer.json", out / "tokenizer.json")


def read_variables(data: mmap.mmap) -> dict[str, Array]:
    """Return a `model.bin`'s variables by name, as views of it; ValueError if it is not Whisper."""
    offset = 0

    def number(code: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from(f"<{code}", data, offset)
        offset += struct.calcsize(f"<{code}")
        return int(value)

    def text() -> str:
        nonlocal offset
        length = number("H")
        offset += length
        return data[offset - length : offset - 1].decode()  # it ends with a NUL

    version, spec, _revision = number("I"), text(), number("I")
    if (version, spec) != (6, "WhisperSpec"):
        raise ValueError(f"this is {spec} in format {version}, not WhisperSpec in format 6")
    variables: dict[str, Array] = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = np.dtype(DTYPES[number("B")])
        size = number("I")
        variables[name] = np.frombuffer(data, dtype, size // dtype.itemsize, offset).reshape(shape)
        offset += size
    return variables


def rename(variables: Mapping[str, Array]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield the weights under their Hugging Face names; KeyError for one that is not known."""
    for name, array in variables.items():
        side, *place, kind = name.split("/")
        if kind not in KINDS:
            continue  # a setting of CTranslate2, such as num_heads
        top, *inner = place
        if inner:
            prefix = f"model.{side}.layers.{top.removeprefix('layer_')}"
            modules = LAYER_MODULES["/".join(inner)]
        else:
            prefix, modules = f"model.{side}", (MODULES[top],)
        parts = np.split(array.astype(np.float32), len(modules))
        for module, part in zip(modules, parts, strict=True):
            if kind == "bias" and module.endswith("k_proj"):
                continue  # zeros: Whisper's keys have no bias
            yield f"{prefix}.{module}.{KINDS[kind]}", part


def model_config(tensors: Mapping[str, Array], ids: Mapping[str, int]) -> dict[str, Any]:
    """Return config.json, its numbers read off the weights' shapes."""
    vocabulary, width = tensors["model.decoder.embed_tokens.weight"].shape
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "bos_token_id": ids["<|endoftext|>"],
        "d_model": width,
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "dtype": "float32",
        "eos_token_id": ids["<|endoftext|>"],
        "is_encoder_decoder": True,
        "max_source_positions": len(tensors["model.encoder.embed_positions.weight"]),
        "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
        "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
        "pad_token_id": ids["<|endoftext|>"],
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": vocabulary,
    }
    for side in ("encoder", "decoder"):
        config[f"{side}_layers"] = sum(
            name.startswith(f"model.{side}.") and name.endswith(".fc1.weight") for name in tensors
        )
        config[f"{side}_attention_heads"] = width // HEAD_SIZE
        config[f"{side}_ffn_dim"] = len(tensors[f"model.{side}.layers.0.fc1.bias"])
    return config


def generation_config(settings: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """Return generation_config.json: what to suppress, and the ids that steer the decoder."""
    return {
        "alignment_heads": settings["alignment_heads"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "bos_token_id": ids["<|endoftext|>"],
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "is_multilingual": False,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "return_timestamps": False,
        "suppress_tokens": settings["suppress_ids"],
    }


def tokenizer_config(added: list[str]) -> dict[str, Any]:
    """Return tokenizer_config.json.

    The special tokens keep their order, since transformers counts timestamps from the last one.
    """
    return {
        "add_prefix_space": False,
        "additional_special_tokens": added,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "processor_class": "WhisperProcessor",
        "tokenizer_class": "WhisperTokenizer",
        "unk_token": "<|endoftext|>",
    }
