"""The headers of a model's safetensors files: which tensors there are, and what they take.

A header is checked in full before it is believed: the memory budget counts on its shapes. The
format is described at https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from shared.errors import InvalidModelError
from shared.files.snapshot import WEIGHTS_INDEX, WEIGHTS_INDEX_SUFFIX
from text_svc.formats.json_files import read_json

# Largest header that is parsed: about 80,000 tensors. safetensors' own limit is 100 MB.
MAX_HEADER_BYTES = 8 << 20
# Tensors of a model, those of all its files together. The largest published models have 90,000.
MAX_TENSORS = 100_000
# Dimensions of a tensor; torch's own limit is higher, and no model has more than 6.
MAX_DIMENSIONS = 16
# Files with weights in a model's folder and those below it.
MAX_WEIGHT_FILES = 1100
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_KEYS = {"dtype", "shape", "data_offsets"}

_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
# What causal language models call the matrix that gives the logits.
_HEADS = ("lm_head.weight", "embed_out.weight")
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor.

    Attributes:
        dtype: as in the file, such as "F32".
        begin: of its bytes, counted from the end of the header.
        end: the byte after them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of a model's weights in memory.

    Attributes:
        total: all of them.
        shared_head: of the matrix that embeds tokens and also gives the logits; 0 where the files
            have one matrix for each. Where a head has an unusual name this may be too much, never
            too little.
    """

    total: int
    shared_head: int


def weight_sizes(folder: Path, float_bytes: int) -> WeightSizes:
    """What the weights of `folder` take in memory when floats have `float_bytes` each.

    Raises:
        InvalidModelError: a file is not a safetensors file, or its size and header disagree, or
            the files and their index do, or a limit is exceeded.
    """
    total, largest, has_head = 0, 0, False
    for tensor in model_tensors(folder):
        item = float_bytes if tensor.dtype in _FLOATS else _ITEM_BYTES[tensor.dtype]
        size = item * math.prod(tensor.shape)
        total += size
        if len(tensor.shape) == 2:
            largest = max(largest, size)
        has_head = has_head or tensor.name.endswith(_HEADS)
    return WeightSizes(total, 0 if has_head else largest)


def model_tensors(folder: Path) -> list[Tensor]:
    """All tensors of a model's folder, and of the folders of its modules.

    Raises:
        InvalidModelError: see `weight_sizes`.
    """
    paths = sorted(folder.rglob("*.safetensors"))
    if len(paths) > MAX_WEIGHT_FILES:
        raise InvalidModelError(
            f"the model has {len(paths)} files of weights; the limit is {MAX_WEIGHT_FILES}"
        )
    found: dict[str, dict[str, Tensor]] = {}
    count = 0
    for path in paths:
        name = path.relative_to(folder).as_posix()
        found[name] = {tensor.name: tensor for tensor in read_header(path)}
        count += len(found[name])
        if count > MAX_TENSORS:
            raise InvalidModelError(f"the model has over {MAX_TENSORS} tensors, which is the limit")
    for index in sorted(folder.rglob(f"*{WEIGHTS_INDEX_SUFFIX}")):
        _check_index(index, folder, found)
    return [tensor for tensors in found.values() for tensor in tensors.values()]


def _check_index(path: Path, folder: Path, found: dict[str, dict[str, Tensor]]) -> None:
    """Compares the index of a sharded model with what the files beside it have."""
    index = read_json(path)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict):
        raise InvalidModelError(f"{WEIGHTS_INDEX} has no weight_map")
    beside = path.parent.relative_to(folder)
    for tensor, file in listed.items():
        name = (beside / file).as_posix() if isinstance(file, str) else ""
        if tensor not in found.get(name, ()):
            raise InvalidModelError(
                f"{WEIGHTS_INDEX} lists tensor {tensor[:80]!r} in a file that does not have it"
            )
    seen: set[str] = set()
    for file in sorted(set(listed.values())):
        names = found[(beside / file).as_posix()].keys()
        if twice := seen & names:
            raise InvalidModelError(f"tensor {min(twice)[:80]!r} is in two files of weights")
        seen |= names


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one file, in the order of their bytes; they fill the file without gaps.

    Raises:
        InvalidModelError: see `weight_sizes`.
    """
    try:
        return list(_tensors(path))
    except _BrokenError as error:
        raise InvalidModelError(f"{path.name} is not a safetensors file: {error}") from None


class _BrokenError(Exception):
    """Why a file is not a safetensors file."""


def _tensors(path: Path) -> Iterator[Tensor]:
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = file.read(_LENGTH_BYTES)
        header_bytes = int.from_bytes(length, "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise _BrokenError(
                f"its header has {header_bytes} bytes; the limit is {MAX_HEADER_BYTES}"
            )
        text = file.read(header_bytes)
    if len(length) < _LENGTH_BYTES or len(text) < header_bytes:
        raise _BrokenError("it ends before its header does")
    end = 0
    tensors = [_tensor(name, value) for name, value in _parsed(text) if name != _METADATA]
    for tensor in sorted(tensors, key=lambda each: (each.begin, each.end)):
        if tensor.begin != end:
            kind = "overlap" if tensor.begin < end else "leave a gap"
            raise _BrokenError(f"tensors {kind} before {tensor.name[:80]!r}")
        end = tensor.end
        yield tensor
    if end != file_bytes - _LENGTH_BYTES - header_bytes:
        raise _BrokenError(
            f"its tensors have {end} bytes, and the file has "
            f"{file_bytes - _LENGTH_BYTES - header_bytes} for them"
        )


def _parsed(text: bytes) -> list[tuple[str, Any]]:
    """Names and values of a header."""
    if text.count(b"{") > MAX_TENSORS + 2:
        raise _BrokenError(f"it has over {MAX_TENSORS} tensors, which is the limit")
    # Pairs and not a dictionary, in which the last of two tensors of a name would win.
    try:
        header = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_refuse)
    except RecursionError:
        raise _BrokenError("its header is nested too deep") from None
    except ValueError:
        raise _BrokenError("its header is not valid JSON") from None
    if not isinstance(header, _Pairs):
        raise _BrokenError("its header is not a JSON object")
    if len({name for name, _ in header}) < len(header):
        raise _BrokenError("two tensors have the same name")
    return header


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as pairs of names and values."""


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _tensor(name: str, value: Any) -> Tensor:
    fields = dict(value) if isinstance(value, _Pairs) else {}
    if fields.keys() != _KEYS or len(value) != len(_KEYS):
        raise _BrokenError(f"tensor {name[:80]!r} has no dtype, shape and data_offsets, or more")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _BrokenError(f"the dtype of tensor {name[:80]!r} is not known")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _BrokenError(f"the shape of tensor {name[:80]!r} is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _BrokenError(f"the data_offsets of tensor {name[:80]!r} are not two numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _BrokenError(f"tensor {name[:80]!r} has other bytes than its shape and dtype say")
    return Tensor(name, dtype, tuple(shape), begin, end)


def _are_sizes(value: Any) -> bool:
    """Whether a value is a list of integers from 0 up, none so large that it must be wrong."""
    return (
        isinstance(value, list)
        and not isinstance(value, _Pairs)
        and all(type(each) is int and 0 <= each < 1 << 63 for each in value)
    )
