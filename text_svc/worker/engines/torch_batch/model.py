"""Forward passes of a causal language model over the rows of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from text_svc.worker.engines.torch_batch.kv_cache import LayerShape, RowCache, aligned

# The name of `_attention` among transformers' attention implementations.
ATTENTION = "sdpa_of_rows"
# The layer types of transformers' configs that a batch can have.
FULL, SLIDING = "full_attention", "sliding_attention"
# One mask for all layers, or one per layer type; None leaves the mask to the model.
Mask = torch.Tensor | dict[str, torch.Tensor] | None


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
    """transformers' sdpa, without copies of grouped keys and values for a single new token.

    Under a mask transformers repeats keys and values for each query head of a group. Once
    sequences are long, that costs more than the rest of the step. With one token per row the
    query heads of a group can take the place of the query's tokens instead, because they all have
    the same mask.
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
class AttentionWindows:
    """How far back the layers see. The cache keeps all tokens; masks hide those out of a window.

    Attributes:
        tokens: size of a window; None if all layers see everything.
        types: of the layers, for a model that takes a mask per type.
    """

    tokens: int | None
    types: frozenset[str]

    @classmethod
    def of(cls, model: Any) -> AttentionWindows:
        """The windows of a causal language model."""
        config = model.config.get_text_config(decoder=True)
        types = frozenset(getattr(config, "layer_types", None) or ())
        slides = SLIDING in types or not types
        return cls(getattr(config, "sliding_window", None) if slides else None, types)

    def mask(self, positions: torch.Tensor, past: torch.Tensor) -> Mask:
        """What each row's new token sees: booleans of shape (rows, 1, 1, tokens).

        Args:
            positions: of the tokens that are read, shape (tokens,).
            past: tokens of each row before the new one, shape (rows,).
        """
        full = (positions <= past[:, None])[:, None, None]
        if self.tokens is None:
            return full
        near = full & (positions > past[:, None] - self.tokens)[:, None, None]
        return {FULL: full, SLIDING: near} if self.types else near


class BatchModel:
    """Reads prompts and tokens into the rows of a cache. Use it from one thread only.

    Args:
        model: one that `eligibility.layer_shapes` accepts.
        layers: what `layer_shapes` returned.
        tokens: size of the cache, for prompts and generated tokens of all rows.
    """

    def __init__(self, model: Any, layers: Sequence[LayerShape], tokens: int) -> None:
        self.device: torch.device = model.device
        self.cache = RowCache(layers, tokens, model.dtype, model.device)
        self._model = model
        self._windows = AttentionWindows.of(model)
        parameters = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @torch.inference_mode()
    def prompt(self, row: int, ids: Sequence[int], past: int) -> torch.Tensor:
        """Reads tokens into one row, after its first `past` ones.

        Returns:
            The logits of the last token, float32, shape (1, vocabulary).
        """
        positions = torch.arange(past, past + len(ids), device=self.device)
        slots = positions + row * self.cache.stride
        self.cache.select(row, 1, past, past + len(ids), slots)
        return self._forward(torch.tensor([ids], device=self.device), positions[None], None)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        """Reads one token into each of the first rows.

        Args:
            tokens: one per row.
            lengths: of the rows before this token.

        Returns:
            The logits, float32, shape (rows, vocabulary).
        """
        if len(tokens) == 1:
            return self.prompt(0, tokens, lengths[0])
        ids, past = torch.tensor([tokens, lengths], device=self.device)
        rows = torch.arange(len(tokens), device=self.device)
        read = min(aligned(max(lengths) + 1), self.cache.stride)
        self.cache.select(0, len(tokens), max(lengths), read, rows * self.cache.stride + past)
        mask = self._windows.mask(torch.arange(read, device=self.device), past)
        return self._forward(ids[:, None], past[:, None], mask)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: Mask) -> torch.Tensor:
        logits: torch.Tensor = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **self._last_only,
        ).logits
        return logits[:, -1].float()
