"""What a model directory holds, read from the headers of its safetensors files alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InvalidModelError

# A header over this size is not one; safetensors' own limit.
MAX_HEADER_BYTES = 100_000_000

_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
# What causal language models call the matrix that gives the logits.
_HEADS = ("lm_head.weight", "embed_out.weight")
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def _header(path: Path) -> dict[str, dict[str, object]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise InvalidModelError(f"{path.name} is not a safetensors file: its header is broken")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise InvalidModelError(f"{path.name} is not a safetensors file: its header is no JSON")
    header.pop("__metadata__", None)
    end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if 8 + length + end != size:
        raise InvalidModelError(
            f"{path.name} is damaged: it has {size} bytes and its header says {8 + length + end}"
        )
    return header


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of a model's weights in memory.

    Attributes:
        total: all of them.
        shared_head: of the matrix that embeds tokens and also gives the logits; 0 where the files
            have a matrix for each. Where it has a name of its own, more may be told, never less.
    """

    total: int
    shared_head: int


def weight_sizes(folder: Path, float_bytes: int) -> WeightSizes:
    """What the weights of `folder` take in memory when floats have `float_bytes` each.

    Raises:
        InvalidModelError: a file is no safetensors file, or its size and header disagree.
    """
    total, largest, has_head = 0, 0, False
    for path in sorted(folder.glob("*.safetensors")):
        try:
            for name, tensor in _header(path).items():
                dtype, shape = tensor["dtype"], tensor["shape"]
                item = float_bytes if dtype in _FLOATS else _ITEM_BYTES.get(str(dtype), 8)
                size = item * math.prod(shape)  # type: ignore[call-overload]
                total += size
                if len(shape) == 2:  # type: ignore[arg-type]
                    largest = max(largest, size)
                has_head = has_head or name.endswith(_HEADS)
        except (KeyError, TypeError, IndexError):
            raise InvalidModelError(f"{path.name} has a header that is not safetensors'") from None
    return WeightSizes(total, 0 if has_head else largest)
