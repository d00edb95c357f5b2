"""Weights that are read out of ONNX files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.models import encoders, onnx_file

FLOAT, UINT8, INT8, DOUBLE = 1, 2, 3, 11


def tensor(name: str, values: Any, kind: int = FLOAT, *, raw: bool = True) -> Any:
    array = np.asarray(values, {FLOAT: np.float32, UINT8: np.uint8, INT8: np.int8}.get(kind))
    made = onnx_file.message_class("Tensor")(name=name, dims=array.shape, data_type=kind)
    if raw:
        made.raw_data = array.tobytes()
    elif kind == FLOAT:
        made.float_data.extend(array.ravel())
    else:
        made.int32_data.extend(array.ravel())
    return made


def node(operation: str, name: str, *inputs: str, **numbers: int) -> Any:
    attribute = [{"name": each, "i": value} for each, value in numbers.items()]
    node_class = onnx_file.message_class("Node")
    return node_class(op_type=operation, name=name, input=inputs, attribute=attribute)


def saved(folder: Path, nodes: list[Any], tensors: list[Any]) -> Path:
    model = onnx_file.message_class("Model")()
    for each in nodes:
        model.graph.node.add().MergeFromString(each.SerializeToString())
    for each in tensors:
        model.graph.initializer.add().MergeFromString(each.SerializeToString())
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_a_weight_is_what_its_quantizer_has_rounded(tmp_path: Path) -> None:
    columns = [[1, -2], [3, 4], [5, -6]]  # three numbers in, two out
    tensors = [
        tensor("bert.pooler.dense.bias", [0.5, 1.5]),
        tensor("bert.embeddings.weight_quantized", [[128, 130]], UINT8),
        tensor("bert.embeddings.weight_scale", 0.5, raw=False),
        tensor("bert.embeddings.weight_zero_point", 128, UINT8, raw=False),
        tensor("onnx::MatMul_1_quantized", columns, INT8),
        tensor("onnx::MatMul_1_scale", [0.5, 2], raw=False),
        tensor("onnx::MatMul_1_zero_point", [1, 0], INT8, raw=False),
        # Numbers 0 to 7 in blocks of four; two in a byte, the lower half first.
        tensor("onnx::MatMul_2_Q4", [[[0x10, 0x32], [0x54, 0x76]]], UINT8),
        tensor("onnx::MatMul_2_scales", [1, 10]),
    ]
    nodes = [
        node("MatMulInteger", "/bert/pooler/dense/Gemm_quant", "x", "onnx::MatMul_1_quantized"),
        node("MatMul", "/bert/MatMul", "x", "y"),
        node(
            *("MatMulNBits", "/classifier/MatMul_Q4", "x"),
            *("onnx::MatMul_2_Q4", "onnx::MatMul_2_scales"),
            N=1,
            K=7,
            bits=4,
            block_size=4,
        ),
    ]
    weights = encoders.dequantize(onnx_file.read(saved(tmp_path, nodes, tensors)))
    assert {name: array.tolist() for name, array in weights.items()} == {
        "bert.pooler.dense.bias": [0.5, 1.5],
        "bert.embeddings.weight": [[0, 1]],
        "bert.pooler.dense.weight": [[0, 1, 2], [-4, 8, -12]],
        "classifier.weight": [[-8, -7, -6, -5, -40, -30, -20]],
    }
    assert all(array.dtype == np.float32 for array in weights.values())


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, [node("MatMul", "/a/MatMul", "x", "w")], [tensor("w", [[1.0]])])
    with pytest.raises(ValueError, match="a has a matrix that is not quantized"):
        encoders.dequantize(onnx_file.read(whole))
    double = saved(tmp_path, [], [tensor("w", [1.0], DOUBLE)])
    with pytest.raises(ValueError, match="w is of type 11"):
        onnx_file.read(double)
    nodes = [node("MatMulNBits", "/a/MatMul", "x", "w", "s", bits=8)]
    with pytest.raises(ValueError, match="a is not of 4 bits"):
        encoders.dequantize(onnx_file.read(saved(tmp_path, nodes, [])))
