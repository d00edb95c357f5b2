"""Tensors of the wire, and NumPy's arrays of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ml import transformers_pb2 as pb
from shared.errors import InputTooLargeError, InvalidArgumentError, MissingFieldError
from text_svc.worker.engines.litert import STRING, Array, Signature, TensorSpec, elements

# Dimensions of a tensor; LiteRT's own limit is 8.
MAX_DIMENSIONS = 8


def arrays_of(tensors: Sequence[pb.Tensor], signature: Signature) -> dict[str, Array]:
    """The arrays of a request, by the names of the signature's inputs.

    Raises:
        InvalidArgumentError: a name, dtype, shape or count of bytes is not what the model takes.
        MissingFieldError: an input is not there.
    """
    arrays: dict[str, Array] = {}
    for index, tensor in enumerate(tensors):
        field = f"tensors.tensors[{index}]"
        name = tensor.name
        if not name and len(signature.inputs) == 1:
            (name,) = signature.inputs
        spec = signature.inputs.get(name)
        if spec is None:
            raise InvalidArgumentError(
                f"{field}.name is {name[:80]!r}; it must be one of {', '.join(signature.inputs)}",
                field=f"{field}.name",
            )
        if name in arrays:
            raise InvalidArgumentError(f"{field} is input {name!r} again", field=f"{field}.name")
        arrays[name] = _array(tensor, spec, field)
    if missing := [name for name in signature.inputs if name not in arrays]:
        raise MissingFieldError(f"input {missing[0]!r} is missing", field="tensors")
    return arrays


def _array(tensor: pb.Tensor, spec: TensorSpec, field: str) -> Array:
    if tensor.dtype and tensor.dtype != spec.dtype:
        raise InvalidArgumentError(
            f"{field}.dtype is {tensor.dtype[:40]!r}; input {spec.name!r} is {spec.dtype}",
            field=f"{field}.dtype",
        )
    shape = _shape(tensor, spec, field)
    if spec.dtype == STRING:
        if len(tensor.strings) != elements(shape):
            raise InvalidArgumentError(
                f"{field} has {len(tensor.strings)} strings; shape {list(shape)} needs "
                f"{elements(shape)}",
                field=f"{field}.strings",
            )
        strings = np.empty(len(tensor.strings), object)
        strings[:] = list(tensor.strings)
        return strings.reshape(shape)
    dtype = _dtype(spec.dtype)
    wanted = elements(shape) * dtype.itemsize
    if len(tensor.data) != wanted:
        raise InvalidArgumentError(
            f"{field}.data has {len(tensor.data)} bytes; {spec.dtype} of shape {list(shape)} has "
            f"{wanted}",
            field=f"{field}.data",
        )
    array: Array = np.frombuffer(tensor.data, dtype)
    if dtype.kind == "b":  # another byte than 0 and 1 would be no bool
        array = np.frombuffer(tensor.data, np.uint8) != 0
    return array.reshape(shape)


def _shape(tensor: pb.Tensor, spec: TensorSpec, field: str) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    if not shape and -1 not in spec.shape:
        shape = spec.shape
    if len(shape) > MAX_DIMENSIONS or not spec.fits(shape):
        raise InvalidArgumentError(
            f"{field}.shape is {list(shape[: MAX_DIMENSIONS + 1])}; input {spec.name!r} has shape "
            f"{list(spec.shape)}"
            + (", where -1 is any size from 1 on" if -1 in spec.shape else ""),
            field=f"{field}.shape",
        )
    return shape


def tensors_of(
    arrays: Mapping[str, Array], signature: Signature, max_bytes: int
) -> list[pb.Tensor]:
    """The tensors of an answer.

    Raises:
        InputTooLargeError: they have more bytes than a message may have.
    """
    total = sum(array.nbytes for array in arrays.values())
    if total > max_bytes:
        raise InputTooLargeError(
            f"the outputs have {total} bytes; the limit is {max_bytes}",
            metadata={"limit": str(max_bytes)},
        )
    return [_tensor(arrays[name], spec) for name, spec in signature.outputs.items()]


def _tensor(array: Array, spec: TensorSpec) -> pb.Tensor:
    tensor = described(spec)
    tensor.shape[:] = array.shape
    if spec.dtype == STRING:
        tensor.strings.extend(array.ravel().tolist())
    else:
        little = array.astype(_dtype(spec.dtype), copy=False)
        tensor.data = np.ascontiguousarray(little).tobytes()
    return tensor


def described(spec: TensorSpec) -> pb.Tensor:
    """A tensor without elements."""
    tensor = pb.Tensor(name=spec.name, dtype=spec.dtype, shape=spec.shape)
    if spec.scales:
        tensor.quantization.scales.extend(spec.scales)
        tensor.quantization.zero_points.extend(spec.zero_points)
        tensor.quantization.dimension = spec.dimension
    return tensor


def fewest_bytes(spec: TensorSpec) -> int:
    """Bytes of the elements of a tensor, with 1 for each dimension that may vary."""
    if spec.dtype == STRING:
        return elements(tuple(map(abs, spec.shape)))
    return elements(tuple(map(abs, spec.shape))) * _dtype(spec.dtype).itemsize


def _dtype(name: str) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    return dtype.newbyteorder("<")
