"""ONNX files: their nodes, and their weights as arrays.

protobuf reads them, by a description of the few fields of `onnx.proto` that say what a weight is
and which layer uses it: little beside a package that can do all that ONNX can.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

Array = npt.NDArray[Any]

# Message, then field: number and type of onnx.proto; a star marks a repeated field.
MESSAGES = {
    "Model": {"graph": (7, "Graph")},
    "Graph": {"node": (1, "Node*"), "initializer": (5, "Tensor*")},
    "Node": {
        "input": (1, "string*"),
        "output": (2, "string*"),
        "name": (3, "string"),
        "op_type": (4, "string"),
        "attribute": (5, "Attribute*"),
    },
    "Attribute": {
        "name": (1, "string"),
        "i": (3, "int64"),
        "t": (5, "Tensor"),
        "ints": (8, "int64*"),
    },
    "Tensor": {
        "dims": (1, "int64*"),
        "data_type": (2, "int32"),
        "float_data": (4, "float*"),
        "int32_data": (5, "int32*"),
        "int64_data": (7, "int64*"),
        "name": (8, "string"),
        "raw_data": (9, "bytes"),
    },
}
# By TensorProto.DataType: the type, and the field of the values that are not in raw_data.
DTYPES: Mapping[int, tuple[type[Any], str]] = {
    1: (np.float32, "float_data"),
    2: (np.uint8, "int32_data"),
    3: (np.int8, "int32_data"),
    6: (np.int32, "int32_data"),
    7: (np.int64, "int64_data"),
}


@dataclass(frozen=True)
class Node:
    """An operation, with the names of the arrays that it takes and makes.

    Attributes:
        place: the module that it belongs to, as PyTorch's exporter writes it into the node's name:
            `/bert/pooler/dense/Gemm` belongs to `bert.pooler.dense`.
        numbers: its attributes that are integers, or lists of them.
    """

    operation: str
    place: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Graph:
    """A model: its nodes in order, and every constant array by name."""

    nodes: tuple[Node, ...]
    arrays: Mapping[str, Array]


def read(path: Path) -> Graph:
    """Return the graph of an ONNX file; ValueError for an array of a type that is not known."""
    graph = message_class("Model").FromString(path.read_bytes()).graph
    arrays = {tensor.name: _array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant":
            for each in node.attribute:
                if each.name == "value":
                    arrays[node.output[0]] = _array(each.t)
            continue
        place = node.name.rpartition("/")[0].strip("/").replace("/", ".")
        numbers = {each.name: tuple(each.ints) or (each.i,) for each in node.attribute}
        nodes.append(Node(node.op_type, place, tuple(node.input), tuple(node.output), numbers))
    return Graph(tuple(nodes), arrays)


def _array(tensor: Any) -> Array:
    if tensor.data_type not in DTYPES:
        raise ValueError(f"{tensor.name} is of type {tensor.data_type}, which is not read here")
    dtype, field = DTYPES[tensor.data_type]
    if tensor.raw_data:
        return np.frombuffer(tensor.raw_data, dtype).reshape(tensor.dims)
    return np.array(getattr(tensor, field), dtype).reshape(tensor.dims)


def message_class(name: str) -> Any:
    """Return the class of a message of `MESSAGES`."""
    file = FileDescriptorProto(name="onnx_subset.proto", package="onnx", syntax="proto3")
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for field, (number, of) in fields.items():
            kind = of.removesuffix("*")
            labels = FieldDescriptorProto.Label
            entry = described.field.add(name=field, number=number)
            entry.label = labels.LABEL_REPEATED if of.endswith("*") else labels.LABEL_OPTIONAL
            if kind in MESSAGES:
                entry.type, entry.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".onnx.{kind}"
            else:
                entry.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"onnx.{name}"))
