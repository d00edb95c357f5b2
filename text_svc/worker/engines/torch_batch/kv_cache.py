"""KV cache of a ragged batch: each row at its own position, no left padding."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from text_svc.processes.native_memory import resident_of

# Rows start, and the part of them that is read ends, at multiples of this: kernels want masks
# that are aligned.
ALIGNMENT = 16


def aligned(tokens: int) -> int:
    """`tokens`, rounded up to a multiple of ALIGNMENT."""
    return -(-tokens // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class LayerShape:
    """What one token adds to a layer: key and value heads, and their sizes."""

    heads: int
    key_size: int
    value_size: int


class RowCache(Cache):
    """One pool of tokens per layer, divided into rows of `stride` tokens.

    transformers passes a cache to every layer of a forward pass, and the layer calls `update`.
    Which rows that concerns is set before the pass, by `select`.

    Args:
        layers: their shapes.
        tokens: size of the pool, a multiple of ALIGNMENT.
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

        # On the processor, each pool is a mapping, whose pages the system gives when they are
        # written, and takes back at once.
        self._mappings: list[mmap.mmap] = []
        on_host = torch.device(device).type == "cpu"

        def pool(heads: int, size: int) -> torch.Tensor:
            # Zeros: what a mask hides must still be a number.
            shape = tokens, heads, size
            if not on_host:
                return torch.zeros(shape, dtype=dtype, device=device)
            size_bytes = math.prod(shape) * dtype.itemsize
            if not size_bytes:
                return torch.zeros(shape, dtype=dtype)
            mapping = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._mappings.append(mapping)
            return torch.frombuffer(mapping, dtype=dtype).view(shape)

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
        """Size of all pools."""
        return sum(pool.nbytes for pool in self._all())

    @property
    def taken_bytes(self) -> int:
        """Of that, what is in memory: on the processor, pages that were used."""
        if not self._mappings:
            return self.num_bytes
        return sum(resident_of(pool.data_ptr(), pool.nbytes) for pool in self._all() if pool.nbytes)

    def give_back(self) -> None:
        """Empties all pools, and on the processor gives their memory back."""
        for mapping in self._mappings:
            mapping.madvise(mmap.MADV_DONTNEED)

    def select(self, first: int, rows: int, past: int, read: int, slots: torch.Tensor) -> None:
        """Sets what the next forward pass writes and reads.

        Args:
            first, rows: the pass is about rows first, first + 1, … of the cache.
            past: tokens in the row before the pass; has no meaning for more than one row.
            read: tokens of each row to attend to, the new ones included.
            slots: places of the new tokens in the pool, in the order of the batch.
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
        """Writes new tokens; returns the selected rows, shape (rows, heads, tokens, size)."""
        keys, values = self._pools[layer_idx]
        return self._write(keys, key_states), self._write(values, value_states)

    def _write(self, pool: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        pool.index_copy_(0, self._slots, new.transpose(1, 2).reshape(-1, *pool.shape[1:]))
        rows = self._view(pool, self._first + self._rows, self.stride)
        return rows[self._first :, : self._read].transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the next pass; transformers makes the mask of a single row from it."""
        return self._past

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many tokens are attended to, and the position of the first one."""
        return self._read, 0

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """-1: a single row has no limit of its own."""
        return -1

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copies the first tokens of a row to another row."""
        for pool in self._all():
            rows = self._view(pool, max(source, target) + 1, self.stride)
            rows[target, :tokens] = rows[source, :tokens]

    def clear(self, row: int) -> None:
        """Fills a row with zeros."""
        for pool in self._all():
            self._view(pool, row + 1, self.stride)[row] = 0

    def resize(self, stride: int, rows: int, tokens: int) -> None:
        """Changes the size of all rows, and keeps the first tokens of the first rows."""
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
