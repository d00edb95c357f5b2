"""A .tflite model on LiteRT's interpreter, with XNNPACK on the CPU.

An interpreter answers one call at a time, so callers share a pool of them; each has a copy of the
weights, packed for the processor, and its own tensors: about 20 MiB of MediaPipe's hair
segmentation, a file of 0.8 MB, once it has been called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from shared.errors import InvalidArgumentError, InvalidModelError
from shared.process import exit_if_out_of_memory

Array = npt.NDArray[Any]
STRING = "string"
# Types that have a NumPy type whose elements are whole bytes.
DTYPES = {
    *("float32", "float16", "bfloat16", "float64", "complex64", "complex128", "bool", STRING),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        dtype: the name of NumPy's type, or STRING.
        shape: -1 for a dimension that may vary.
        scales: of a quantised tensor, one or one for each index of `dimension`; else empty.
        zero_points: the same.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    dimension: int = 0

    @classmethod
    def of(cls, name: str, details: Mapping[str, Any]) -> TensorSpec:
        """The same as LiteRT describes it.

        Raises:
            InvalidModelError: its type has no whole bytes.
        """
        dtype = np.dtype(details["dtype"])
        kind = STRING if dtype.kind in "SO" else dtype.name
        if kind not in DTYPES:
            raise InvalidModelError(f"tensor {name[:80]!r} is of type {kind}, which is not served")
        quantization = details["quantization_parameters"]
        # No shape signature means that no dimension varies, and a scalar has neither.
        shape = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
        return cls(
            name,
            kind,
            tuple(map(int, shape)),
            tuple(map(float, quantization["scales"])),
            tuple(map(int, quantization["zero_points"])),
            int(quantization["quantized_dimension"]),
        )

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor may have this shape."""
        return len(shape) == len(self.shape) and all(
            size == own if own >= 0 else size > 0
            for size, own in zip(shape, self.shape, strict=True)
        )


@dataclass(frozen=True)
class Signature:
    """One way to call a model: what it takes and returns, by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


class LiteRtModel:
    """A pool of interpreters of one file. Safe to use from any thread.

    Attributes:
        signatures: by their names; the one name is "" if the file names none.
        weights_bytes: of the file.

    Args:
        path: of the file.
        threads: that compute in one call.
        running: calls at once, and interpreters.

    Raises:
        InvalidModelError: LiteRT cannot load the file.
    """

    def __init__(self, path: Path, threads: int, running: int) -> None:
        self._path, self._threads = path, threads
        self._idle: SimpleQueue[Interpreter] = SimpleQueue()
        interpreters = [self._load() for _ in range(running)]
        for each in interpreters:
            self._idle.put(each)
        self.signatures = _signatures(interpreters[0])
        self.weights_bytes = path.stat().st_size

    def run(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of one call. Blocks until an interpreter is free and has finished.

        Args:
            name: of a signature.
            inputs: all of them, of their types, with shapes that fit.

        Raises:
            InvalidArgumentError: LiteRT cannot compute with them.
        """
        with self._lent() as interpreter:
            if name:
                outputs: dict[str, Array] = interpreter.get_signature_runner(name)(**inputs)
                return outputs
            for details in interpreter.get_input_details():
                shape = inputs[details["name"]].shape
                if shape != tuple(details["shape"]):
                    interpreter.resize_tensor_input(details["index"], shape)
            interpreter.allocate_tensors()
            for details in interpreter.get_input_details():
                interpreter.set_tensor(details["index"], inputs[details["name"]])
            interpreter.invoke()
            return {
                each["name"]: interpreter.get_tensor(each["index"])
                for each in interpreter.get_output_details()
            }

    @contextmanager
    def _lent(self) -> Iterator[Interpreter]:
        """An interpreter for one call, which leaves nothing in it for the next one."""
        interpreter = self._idle.get()
        try:
            yield interpreter
            interpreter.reset_all_variables()  # those of recurrent layers
        except Exception as error:
            exit_if_out_of_memory(error)
            interpreter = self._load()  # one that has failed may be laid out by halves
            if isinstance(error, RuntimeError | ValueError):
                raise InvalidArgumentError(
                    f"LiteRT cannot compute with these inputs: {reason(error, self._path)}",
                    field="tensors",
                ) from None
            raise
        finally:
            self._idle.put(interpreter)

    def _load(self) -> Interpreter:
        try:
            interpreter = Interpreter(model_path=str(self._path), num_threads=self._threads)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise InvalidModelError(
                f"LiteRT cannot load {self._path.name}: {reason(error, self._path)}"
            ) from None
        return interpreter


def _signatures(interpreter: Interpreter) -> dict[str, Signature]:
    def specs(details: Mapping[str, Mapping[str, Any]]) -> dict[str, TensorSpec]:
        return {name: TensorSpec.of(name, each) for name, each in details.items()}

    named = {
        name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()
    }
    if any("self" in one.get_input_details() for one in named.values()):
        # LiteRT takes inputs as keyword arguments of a method.
        raise InvalidModelError("an input of the model is called 'self', which LiteRT cannot take")
    if named:
        return {
            name: Signature(specs(one.get_input_details()), specs(one.get_output_details()))
            for name, one in named.items()
        }
    sides: list[Callable[[], list[dict[str, Any]]]] = [
        interpreter.get_input_details,
        interpreter.get_output_details,
    ]
    inputs, outputs = ({each["name"]: each for each in side()} for side in sides)
    if len(inputs) < len(interpreter.get_input_details()):
        raise InvalidModelError("two inputs of the model have the same name")
    return {"": Signature(specs(inputs), specs(outputs))}


def reason(error: Exception, path: Path) -> str:
    """What LiteRT says, without the advice that follows it; it says nothing if memory is short.

    Args:
        error: its own.
        path: of the file, whose folder is left out.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "its tensors cannot be allocated"
    return lines[0].replace(f"{path.parent}/", "")[:300]


def elements(shape: tuple[int, ...]) -> int:
    """Elements of a tensor."""
    return math.prod(shape)
