"""Linear layers with weights in oneDNN's layout, for small batches on the CPU.

torch's own float32 product of a few rows uses the weights' plain layout. Two to sixteen rows take
two to three times as long as they do here (four times in a head of 49152 tokens), and a prompt 1.6
times. These are the operators that the freezing of torch.compile puts into a model.
"""

from __future__ import annotations

import torch
from torch import nn

# The number of rows that the layout is made for. More and fewer are fast too; a layout made for
# one row would not be.
PACKED_FOR_ROWS = 16


class PackedLinear(nn.Module):
    """`nn.Linear` for inference, with its weight in oneDNN's layout only.

    Attributes:
        packed_bytes: size of the weight.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.packed_bytes = weight.nbytes
        self.bias = linear.bias
        # Not a buffer: an opaque tensor has no address and cannot be copied.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)  # noqa: SLF001

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            rows, self._packed, self.bias, "none", [], ""
        )
        return product


def can_pack(model: nn.Module) -> bool:
    """Whether a model has layers that `pack` would replace."""
    return torch.backends.mkldnn.is_available() and any(map(_packable, model.modules()))


def pack(model: nn.Module) -> int:
    """Replaces the linear layers of a model by packed ones.

    That is done one layer at a time, so there is never a second copy of the whole model. A head
    that shares its weight with the embedding gets a weight of its own.

    Returns:
        The size of the packed weights in bytes.
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
    if type(module) is not nn.Linear:  # subclasses do something else
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32
