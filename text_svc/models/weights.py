"""What the weights of a model take in memory, from the headers of its safetensors files alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from shared.errors import InvalidModelError

# Largest header that is parsed: about 80,000 tensors. safetensors' own limit is 100 MB, and it
# would be parsed with the interpreter's lock held.
MAX_HEADER_BYTES = 8 << 20
_LENGTH_BYTES = 8

_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
# What causal language models call the matrix that gives the logits.
_HEADS = ("lm_head.weight", "embed_out.weight")
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


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
        InvalidModelError: a file is not a safetensors file, or its size and header disagree.
    """
    total, largest, has_head = 0, 0, False
    for path in sorted(folder.glob("*.safetensors")):
        for name, dtype, shape in _tensors(path):
            item = float_bytes if dtype in _FLOATS else _ITEM_BYTES.get(dtype, 8)
            size = item * math.prod(shape)
            total += size
            if len(shape) == 2:
                largest = max(largest, size)
            has_head = has_head or name.endswith(_HEADS)
    return WeightSizes(total, 0 if has_head else largest)


def _tensors(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, dtype ("F32") and shape of each tensor; the header agrees with the file's size.

    Raises:
        InvalidModelError: see `weight_sizes`.
    """
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise InvalidModelError(
            f"{path.name} is not a safetensors file that can be read: its header has "
            f"{header_bytes} bytes; the limit is {MAX_HEADER_BYTES}"
        )
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                tensor = file.get_slice(name)
                yield name, tensor.get_dtype(), tensor.get_shape()
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidModelError(f"{path.name} is not a safetensors file: {error}") from None
