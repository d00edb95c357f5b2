"""A sentence encoder as one torch module: transformer, pooling, and the layers that follow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    MT5EncoderModel,
    T5EncoderModel,
    UMT5EncoderModel,
)

from shared.errors import InvalidModelError
from shared.files.snapshot import WEIGHTS
from text_svc.formats.recipe import Dense, Layer, LayerMean, LayerNorm, Normalize, Recipe
from text_svc.torch_models.pretrained import load_model

# How the transformer is told which tokens are padding:
# - "own": its usual mask, 2-D of ones and zeros;
# - "additive": the 4-D mask that is added to the attention scores, for models whose code that turns
#   the first into this one cannot be traced.
MaskKind = Literal["own", "additive"]

_MASKED = -1e9
# Models with a decoder of which sentence-transformers takes the encoder alone.
_ENCODERS = {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}


class SentenceEncoder(nn.Module):
    """Tokens to sentence vectors, as the recipe says.

    `forward` takes `input_ids` and `attention_mask`, int64 of shape (texts, tokens), padded on the
    right, and returns float32 of shape (texts, dimensions). If the recipe hides tokens, an id
    below 0 is the bitwise complement of a token that is read and not pooled.
    """

    layer_weights: Tensor | None

    def __init__(
        self,
        transformer: nn.Module,
        layers: nn.Module,
        recipe: Recipe,
        layer_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.transformer: Any = transformer
        self.layers = layers
        self.recipe = recipe
        self.register_buffer("layer_weights", layer_weights)
        self.mask_kind: MaskKind = "own"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        pooled_mask = attention_mask
        if self.recipe.hides:
            pooled_mask = attention_mask * (input_ids >= 0).to(attention_mask.dtype)
            input_ids = torch.where(input_ids < 0, -1 - input_ids, input_ids)
        hidden = self._hidden(input_ids, attention_mask).float()
        pooled = pool(hidden, attention_mask, self.recipe.poolings, pooled_mask)
        vectors: Tensor = self.layers(pooled)
        return vectors[:, : self.recipe.dimensions] if self.recipe.dimensions else vectors

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = self._mask(attention_mask)
        mean, weights = self.recipe.layer_mean, self.layer_weights
        if mean is None or weights is None:
            output = self.transformer(input_ids=input_ids, attention_mask=mask)
            hidden: Tensor = output.last_hidden_state
            return hidden
        output = self.transformer(
            input_ids=input_ids, attention_mask=mask, output_hidden_states=True
        )
        layers = torch.stack(output.hidden_states)[mean.first :]
        hidden = (weights[:, None, None, None].to(layers.dtype) * layers).sum(0)
        return hidden / weights.sum()

    def _mask(self, attention_mask: Tensor) -> Tensor:
        if self.mask_kind == "own":
            return attention_mask
        hidden = 1.0 - attention_mask[:, None, None, :].to(self.transformer.dtype)
        return hidden.expand(-1, 1, attention_mask.shape[1], -1) * _MASKED


class StaticTable(nn.Module):
    """The vectors of tokens from a table, with the interface of a transformer.

    Args:
        vectors: shape (rows, size).
        rows: the row of each token, if it is not the token's id.
        weights: of each token, with which its vector is multiplied.
    """

    vectors: Tensor
    rows: Tensor | None
    weights: Tensor | None

    def __init__(self, vectors: Tensor, rows: Tensor | None, weights: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.register_buffer("rows", rows)
        self.register_buffer("weights", weights)
        self.config = SimpleNamespace(vocab_size=len(vectors if rows is None else rows))

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.vectors.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        rows = input_ids if self.rows is None else self.rows[input_ids]
        hidden = nn.functional.embedding(rows, self.vectors)
        if self.weights is not None:
            hidden = hidden * self.weights[input_ids].unsqueeze(-1)
        return SimpleNamespace(last_hidden_state=hidden)


class _Normalized(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=1)


class _Linear(nn.Module):
    """A linear layer with an activation; `residual` says how its input is added to it."""

    def __init__(self, linear: nn.Linear, activation: nn.Module, residual: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.residual = residual

    def forward(self, vectors: Tensor) -> Tensor:
        made: Tensor = self.activation(self.linear(vectors)) + self.residual(vectors)
        return made


def pool(
    hidden: Tensor,
    attention_mask: Tensor,
    poolings: tuple[str, ...],
    pooled_mask: Tensor | None = None,
) -> Tensor:
    """Pools token vectors, as sentence-transformers does.

    Args:
        hidden: shape (texts, tokens, size).
        attention_mask: shape (texts, tokens); 0 for padding.
        poolings: see `Recipe`; their vectors are joined.
        pooled_mask: 0 for padding and for tokens that are left out; the attention mask if None.

    Returns:
        Shape (texts, size x poolings).
    """
    keep = attention_mask if pooled_mask is None else pooled_mask
    keep = keep.unsqueeze(-1).to(hidden.dtype)
    places = attention_mask.unsqueeze(-1).to(hidden.dtype).cumsum(1)
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
                # Tokens count by their places, also where a prompt before them is left out.
                weight = places * keep
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
    if recipe.static:
        transformer: Any = _static(folder / recipe.folder, dtype)
    else:
        transformer = _transformer(folder / recipe.folder, dtype, device)
    layers = nn.Sequential(*(_layer(folder, layer) for layer in recipe.layers))
    weights = None
    if recipe.layer_mean:
        weights = _layer_weights(folder, recipe.layer_mean, transformer.config)
    return SentenceEncoder(transformer, layers, recipe, weights).eval().to(device)


def _transformer(folder: Path, dtype: torch.dtype, device: str) -> Any:
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    transformer = load_model(
        _ENCODERS.get(config.model_type, AutoModel),
        folder,
        dtype=dtype,
        device=device,
        is_used=lambda name: "pooler" not in name,  # the recipe's pooling takes its place
    )
    if getattr(transformer.config, "use_cache", None):
        transformer.config.use_cache = False  # for texts that are continued
    if getattr(transformer.config, "is_causal", None) is False:
        # transformers looks at the config for a mask; without one, at these.
        for module in transformer.modules():
            if getattr(module, "is_causal", None):
                module.is_causal = False
    return transformer


def _static(folder: Path, dtype: torch.dtype) -> StaticTable:
    """A table of sentence-transformers, or of model2vec, which may have two tensors besides."""
    tensors = _read(folder)
    vectors = tensors.get("embedding.weight")
    rows = weights = None
    if vectors is None:
        vectors, rows = tensors.get("embeddings"), tensors.get("mapping")
        weights = tensors.get("weights")
    if vectors is None or vectors.dim() != 2:
        raise InvalidModelError("the weights have no table: embedding.weight or embeddings")
    if not vectors.is_floating_point():
        raise InvalidModelError("the table of vectors is of integers, which is not supported")
    if rows is not None and not (rows.dim() == 1 and 0 <= rows.min() <= rows.max() < len(vectors)):
        raise InvalidModelError("the table's mapping names rows that it does not have")
    tokens = len(vectors if rows is None else rows)
    if weights is not None and weights.shape != (tokens,):
        raise InvalidModelError(f"the table has {tokens} tokens and {len(weights)} weights of them")
    return StaticTable(
        vectors.to(dtype),
        None if rows is None else rows.long(),
        None if weights is None else weights.to(dtype),
    )


def _layer(folder: Path, layer: Layer) -> nn.Module:
    match layer:
        case Dense():
            return _dense(folder, layer)
        case LayerNorm():
            weights = _read(folder / layer.folder)
            norm = nn.LayerNorm(len(_tensor(weights, "norm.weight", 1, layer.folder)))
            norm.load_state_dict({name.removeprefix("norm."): w for name, w in weights.items()})
            return norm
        case Normalize():
            return _Normalized()


def _dense(folder: Path, dense: Dense) -> nn.Module:
    weights = _read(folder / dense.folder)
    size_out, size_in = _tensor(weights, "linear.weight", 2, dense.folder).shape
    residual = weights.pop("residual.weight", None)
    linear = nn.Linear(size_in, size_out, bias=dense.bias)
    linear.load_state_dict({name.removeprefix("linear."): w for name, w in weights.items()})
    activation: nn.Module = getattr(nn, dense.activation)()
    if not dense.residual:
        return nn.Sequential(linear, activation)
    added: nn.Module = nn.Identity()
    if residual is not None:
        added = nn.Linear(size_in, size_out, bias=False)
        added.load_state_dict({"weight": residual})
    return _Linear(linear, activation, added)


def _layer_weights(folder: Path, mean: LayerMean, config: Any) -> Tensor:
    weights = _tensor(_read(folder / mean.folder), "layer_weights", 1, mean.folder)
    layers = config.num_hidden_layers + 1 - mean.first
    if len(weights) != layers:
        raise InvalidModelError(
            f"{mean.folder} has weights of {len(weights)} layers; the transformer has {layers} "
            f"from {mean.first} on"
        )
    return weights.float()


def _read(folder: Path) -> dict[str, Tensor]:
    if not (folder / WEIGHTS).exists():
        raise InvalidModelError(f"{folder.name} has no {WEIGHTS}: only safetensors are loaded")
    tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
    return tensors


def _tensor(weights: dict[str, Tensor], name: str, dimensions: int, folder: str) -> Tensor:
    tensor = weights.get(name)
    if tensor is None or tensor.dim() != dimensions:
        raise InvalidModelError(f"the weights of {folder} have no {name}, or one of another shape")
    return tensor
