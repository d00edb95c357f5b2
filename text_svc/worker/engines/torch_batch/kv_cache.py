"""Keys and values of many answers in one batch, each at its own position, nothing padded left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

# Rows begin, and what is read of them ends, at multiples of it: kernels want aligned masks.
ALIGNMENT = 16
# Our name for torch's sdpa among transformers' attention implementations, see `_attention`.
ATTENTION = "sdpa_of_rows"


def aligned(tokens: int) -> int:
    """The tokens that a row of so many takes."""
    return -(-tokens // ALIGNMENT) * ALIGNMENT


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa, but one new token a row does without copies of grouped keys and values.

    Query heads that share keys and values stand where the tokens of a query do: the masks of all
    are the same, so nothing else changes. transformers repeats keys and values under a mask,
    which costs more than all the rest of a step once answers are long.
    """
    rows, heads, tokens, size = query.shape
    if tokens > 1:
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return out
    groups = key.shape[1]
    attended = scaled_dot_product_attention(
        query.reshape(rows, groups, heads // groups, size),
        key,
        value,
        attn_mask=attention_mask,
        scale=scaling,
    )
    return attended.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@dataclass(frozen=True)
class LayerShape:
    """What one token adds to a layer: heads and their sizes."""

    heads: int
    key_size: int
    value_size: int


class RowCache(Cache):
    """One pool of tokens a layer, cut into rows of `stride` tokens.

    A forward pass is told beforehand, by `at`, which rows it is about.

    Args:
        layers: their shapes.
        tokens: of the pool; a multiple of ALIGNMENT.
        dtype, device: of the model.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        tokens: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(layers=[])

        def pool(heads: int, size: int) -> torch.Tensor:
            # Zeros, since what a mask hides must still be a number.
            return torch.zeros(tokens, heads, size, dtype=dtype, device=device)

        self.tokens = tokens
        self.stride = tokens
        self._pools = [
            (pool(layer.heads, layer.key_size), pool(layer.heads, layer.value_size))
            for layer in layers
        ]
        self._first, self._rows, self._past, self._read = 0, 1, 0, 0
        self._slots = torch.empty(0, dtype=torch.long)

    @property
    def num_bytes(self) -> int:
        """What all pools take."""
        return sum(pool.nbytes for pools in self._pools for pool in pools)

    def at(self, first: int, rows: int, past: int, read: int, slots: torch.Tensor) -> None:
        """Says what the next forward pass writes and reads.

        Args:
            first, rows: the rows are first, first + 1, …
            past: tokens that each had before; of one row, else without meaning.
            read: tokens of each that are attended to, new ones included.
            slots: where in the pool the new tokens go, in the order of the batch.
        """
        self._first, self._rows, self._past, self._read = first, rows, past, read
        self._slots = slots

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new tokens; returns all of the rows, shape (rows, heads, tokens, size)."""
        keys, values = self._pools[layer_idx]
        return self._written(keys, key_states), self._written(values, value_states)

    def _written(self, pool: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        pool.index_copy_(0, self._slots, new.transpose(1, 2).reshape(-1, *pool.shape[1:]))
        rows = self._view(pool, self._first + self._rows, self.stride)
        return rows[self._first :, : self._read].transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the next pass, as masks of one row need them."""
        return self._past

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Tokens attended to, and the first of them."""
        return self._read, 0

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """There is none of one row."""
        return -1

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copies the first tokens of a row to another row."""
        for pool in self._all():
            rows = self._view(pool, max(source, target) + 1, self.stride)
            rows[target, :tokens] = rows[source, :tokens]

    def clear(self, row: int) -> None:
        """Makes a row zeros again."""
        for pool in self._all():
            self._view(pool, row + 1, self.stride)[row] = 0

    def resize(self, stride: int, rows: int, tokens: int) -> None:
        """Gives all rows another size, and keeps the first tokens of the first rows."""
        if stride == self.stride:
            return
        for pool in self._all() if rows else ():
            kept = self._view(pool, rows, self.stride)[:, :tokens].clone()
            self._view(pool, rows, stride)[:, :tokens] = kept
        self.stride = stride

    def _all(self) -> list[torch.Tensor]:
        return [pool for pools in self._pools for pool in pools]

    @staticmethod
    def _view(pool: torch.Tensor, rows: int, stride: int) -> torch.Tensor:
        return pool[: rows * stride].view(rows, stride, *pool.shape[1:])
