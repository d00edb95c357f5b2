"""A sentence encoder as one torch module: transformer, pooling, dense layers, normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel

from text_svc.formats.recipe import Dense, Recipe
from text_svc.torch_models.pretrained import load_model

# How the transformer is told which tokens are padding:
# - "own": its usual mask, 2-D of ones and zeros;
# - "additive": the 4-D mask that is added to the attention scores. transformers' code that turns
#   the first into this one cannot be traced, but most encoders take it as it is;
# - "windowed": one of these for each type of layer, for encoders with layers that attend to a
#   window of the text (ModernBERT).
MaskKind = Literal["own", "additive", "windowed"]

_MASKED = -1e9


class SentenceEncoder(nn.Module):
    """Tokens to sentence vectors, as the recipe says.

    `forward` takes `input_ids` and `attention_mask`, int64 of shape (texts, tokens), padded on the
    right, and returns float32 of shape (texts, dimensions).
    """

    def __init__(self, transformer: nn.Module, dense: nn.Sequential, recipe: Recipe) -> None:
        super().__init__()
        self.transformer: Any = transformer
        self.dense = dense
        self.recipe = recipe
        self.mask_kind: MaskKind = "own"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = self._mask(attention_mask)
        output = self.transformer(input_ids=input_ids, attention_mask=mask)
        pooled = pool(output.last_hidden_state.float(), attention_mask, self.recipe.poolings)
        pooled = self.dense(pooled)
        return nn.functional.normalize(pooled, dim=1) if self.recipe.normalize else pooled

    def _mask(self, attention_mask: Tensor) -> Tensor | dict[str, Tensor]:
        if self.mask_kind == "own":
            return attention_mask
        hidden = 1.0 - attention_mask[:, None, None, :].to(self.transformer.dtype)
        hidden = hidden.expand(-1, 1, attention_mask.shape[1], -1)
        if self.mask_kind == "additive":
            return hidden * _MASKED
        places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        distance = (places[:, None] - places).abs()
        far = (distance > self.transformer.config.sliding_window).to(hidden.dtype)
        return {
            "full_attention": hidden * _MASKED,
            "sliding_attention": torch.maximum(hidden, far) * _MASKED,
        }


def pool(hidden: Tensor, attention_mask: Tensor, poolings: tuple[str, ...]) -> Tensor:
    """Pools token vectors, as sentence-transformers does.

    Args:
        hidden: shape (texts, tokens, size).
        attention_mask: shape (texts, tokens); 0 for padding.
        poolings: see `Recipe`; their vectors are joined.

    Returns:
        Shape (texts, size x poolings).
    """
    keep = attention_mask.unsqueeze(-1).to(hidden.dtype)
    count = keep.sum(1)
    made = []
    for pooling in poolings:
        match pooling:
            case "cls":
                made.append(hidden[:, 0])
            case "max":
                made.append((hidden * keep + (1.0 - keep) * _MASKED).max(1).values)
            case "mean":
                made.append((hidden * keep).sum(1) / count.clamp(min=1e-9))
            case "mean_sqrt_len":
                made.append((hidden * keep).sum(1) / count.clamp(min=1e-9).sqrt())
            case "weighted_mean":
                weight = keep.cumsum(1) * keep
                made.append((hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9))
            case "last":
                last = (keep.cumsum(1) == count.unsqueeze(1)).to(hidden.dtype) * keep
                made.append((hidden * last).sum(1))
    return torch.cat(made, 1)


def load_module(
    folder: Path, recipe: Recipe, *, dtype: torch.dtype, device: str = "cpu"
) -> SentenceEncoder:
    """Reads a sentence encoder from safetensors, ready for inference.

    Raises:
        InvalidModelError: weights are missing.
        OSError, ValueError: transformers cannot read the files.
    """
    transformer = load_model(
        AutoModel,
        folder,
        dtype=dtype,
        device=device,
        is_used=lambda name: "pooler" not in name,  # the recipe's pooling takes its place
    )
    dense = nn.Sequential(*(layer for one in recipe.dense for layer in _dense(folder, one)))
    return SentenceEncoder(transformer, dense, recipe).eval().to(device)


def _dense(folder: Path, dense: Dense) -> tuple[nn.Module, nn.Module]:
    weights = load_file(folder / dense.folder / "model.safetensors")
    size_out, size_in = weights["linear.weight"].shape
    linear = nn.Linear(size_in, size_out, bias=dense.bias)
    linear.load_state_dict({name.removeprefix("linear."): w for name, w in weights.items()})
    return linear, getattr(nn, dense.activation)()
