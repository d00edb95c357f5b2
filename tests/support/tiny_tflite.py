"""Tiny .tflite models, written with the schema that comes with ai-edge-litert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "bool": schema.TensorType.BOOL,
    "string": schema.TensorType.STRING,
}


@dataclass
class Tensor:
    """A tensor: -1 in its shape may vary.

    Attributes:
        data: of a constant; its shape and type are the tensor's.
        scale: of a quantised one.
        variable: keeps its elements from call to call.
    """

    name: str
    shape: Sequence[int] = ()
    dtype: str = "float32"
    data: Any = None
    scale: float = 0.0
    zero_point: int = 0
    variable: bool = False


@dataclass
class Op:
    """An operation on tensors, by their names.

    Attributes:
        kind: of BuiltinOperator, such as "ADD"; or the name of a custom one.
        options: an object of the schema, such as AddOptionsT.
    """

    kind: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    options: Any = None


@dataclass
class Graph:
    """A subgraph with its signature; without a name it has none."""

    tensors: Sequence[Tensor]
    ops: Sequence[Op]
    inputs: Sequence[str]
    outputs: Sequence[str]
    signature: str = ""
    buffers: Mapping[str, int] = field(default_factory=dict)


def tflite(*graphs: Graph) -> bytes:
    """The bytes of a model of these subgraphs. Constants of the same name share their elements."""
    model = schema.ModelT()
    model.version = 3
    model.description = b"tiny"
    model.buffers = [schema.BufferT()]
    model.operatorCodes, model.subgraphs, model.signatureDefs = [], [], []
    codes: dict[str, int] = {}
    constants: dict[str, int] = {}
    for index, graph in enumerate(graphs):
        places = {tensor.name: place for place, tensor in enumerate(graph.tensors)}
        subgraph = schema.SubGraphT()
        subgraph.name = (graph.signature or "main").encode()
        subgraph.tensors = [_tensor(each, model, constants) for each in graph.tensors]
        subgraph.inputs = [places[name] for name in graph.inputs]
        subgraph.outputs = [places[name] for name in graph.outputs]
        subgraph.operators = []
        for op in graph.ops:
            if op.kind not in codes:
                codes[op.kind] = len(model.operatorCodes)
                model.operatorCodes.append(_code(op.kind))
            made = schema.OperatorT()
            made.opcodeIndex = codes[op.kind]
            made.inputs = [places[name] for name in op.inputs]
            made.outputs = [places[name] for name in op.outputs]
            if op.options is not None:
                name = type(op.options).__name__.removesuffix("T")
                made.builtinOptionsType = getattr(schema.BuiltinOptions, name)
                made.builtinOptions = op.options
            subgraph.operators.append(made)
        model.subgraphs.append(subgraph)
        if graph.signature:
            signature = schema.SignatureDefT()
            signature.signatureKey = graph.signature.encode()
            signature.subgraphIndex = index
            signature.inputs = [_named(name, places) for name in graph.inputs]
            signature.outputs = [_named(name, places) for name in graph.outputs]
            model.signatureDefs.append(signature)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _named(name: str, places: Mapping[str, int]) -> Any:
    made = schema.TensorMapT()
    made.name = name.encode()
    made.tensorIndex = places[name]
    return made


def _code(kind: str) -> Any:
    code = schema.OperatorCodeT()
    number = getattr(schema.BuiltinOperator, kind, None)
    if number is None:
        number = schema.BuiltinOperator.CUSTOM
        code.customCode = kind.encode()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
    return code


def _tensor(tensor: Tensor, model: Any, constants: dict[str, int]) -> Any:
    made = schema.TensorT()
    made.name = tensor.name.encode()
    made.buffer = 0
    made.isVariable = tensor.variable
    shape, dtype = list(tensor.shape), tensor.dtype
    if tensor.data is not None:
        data = np.asarray(tensor.data)
        shape, dtype = list(data.shape), data.dtype.name
        if tensor.name not in constants:
            constants[tensor.name] = len(model.buffers)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            model.buffers.append(buffer)
        made.buffer = constants[tensor.name]
    made.type = _TYPES[dtype]
    made.shape = [1 if size < 0 else size for size in shape]
    if any(size < 0 for size in shape):
        made.shapeSignature = shape
    if tensor.scale:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = [tensor.scale]
        made.quantization.zeroPoint = [tensor.zero_point]
    return made


def adding(
    shape: Sequence[int], number: float = 1.0, *, signature: str = "", dtype: str = "float32"
) -> Graph:
    """The input "x" plus a number is the output "y"."""
    return Graph(
        tensors=[
            Tensor("x", shape, dtype),
            Tensor(f"by_{signature}", data=np.array([number], dtype)),
            Tensor("y", shape, dtype),
        ],
        ops=[Op("ADD", ["x", f"by_{signature}"], ["y"], schema.AddOptionsT())],
        inputs=["x"],
        outputs=["y"],
        signature=signature,
    )
