"""Forward passes of a causal language model over rows of a batch, and whether it can do them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from text_svc.worker.engines.torch_batch.kv_cache import (
    ALIGNMENT,
    ATTENTION,
    LayerShape,
    RowCache,
    aligned,
)
from text_svc.worker.engines.torch_batch.packed_linear import (
    can_pack,
    pack,
)

log = logging.getLogger(__name__)

# The check: two prompts of different length and a token more of each, in a batch and alone.
CHECK_PROMPTS = ((1, 2, 3, 5, 8, 13, 21, 34), (4, 9, 16, 25, 36))
# Largest difference of logits, as a share of the largest logit.
TOLERANCE = {torch.float32: 1e-3}
TOLERANCE_OF_HALVES = 0.05
# Rotary frequencies that depend on the longest row of a batch.
BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


# For all layers, or by their type; None leaves it to the model.
Mask = torch.Tensor | dict[str, torch.Tensor] | None
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class _Windows:
    """How far back layers see. The cache keeps all tokens; masks hide what is out of a window.

    Attributes:
        tokens: of a window; None where all layers see everything.
        types: of the layers, for a model that takes a mask for each type.
    """

    tokens: int | None
    types: frozenset[str]

    @classmethod
    def of(cls, model: Any) -> _Windows:
        """Those of a causal language model."""
        config = model.config.get_text_config(decoder=True)
        types = frozenset(getattr(config, "layer_types", None) or ())
        slides = SLIDING in types or not types
        return cls(getattr(config, "sliding_window", None) if slides else None, types)

    def mask(self, places: torch.Tensor, past: torch.Tensor) -> Mask:
        """What each row's new token sees: booleans of shape (rows, 1, 1, tokens read).

        Args:
            places: of the tokens that are read, shape (tokens,).
            past: tokens of each row before the new one, shape (rows,).
        """
        full = (places <= past[:, None])[:, None, None]
        if self.tokens is None:
            return full
        near = full & (places > past[:, None] - self.tokens)[:, None, None]
        return {FULL: full, SLIDING: near} if self.types else near


class BatchModel:
    """Writes prompts and tokens into the rows of a cache. Not for several threads.

    Args:
        model: one that `layer_shapes` has accepted.
        layers: what that returned.
        tokens: of the cache, prompts and answers of all rows together.
    """

    def __init__(self, model: Any, layers: Sequence[LayerShape], tokens: int) -> None:
        self.device: torch.device = model.device
        self.cache = RowCache(layers, tokens, model.dtype, model.device)
        self._model = model
        self._windows = _Windows.of(model)
        takes = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @torch.inference_mode()
    def prompt(self, row: int, ids: Sequence[int], past: int) -> torch.Tensor:
        """Adds tokens to one row, after `past` others; the logits of the last, (1, vocabulary)."""
        positions = torch.arange(past, past + len(ids), device=self.device)
        slots = positions + row * self.cache.stride
        self.cache.at(row, 1, past, past + len(ids), slots)
        return self._forward(torch.tensor([ids], device=self.device), positions[None], None)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        """Adds one token to each of the first rows; the logits, shape (rows, vocabulary).

        Args:
            tokens: one a row.
            lengths: of the rows, without it.
        """
        if len(tokens) == 1:
            return self.prompt(0, tokens, lengths[0])
        ids, past = torch.tensor([tokens, lengths], device=self.device)
        rows = torch.arange(len(tokens), device=self.device)
        read = min(aligned(max(lengths) + 1), self.cache.stride)
        self.cache.at(0, len(tokens), max(lengths), read, rows * self.cache.stride + past)
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


def layer_shapes(model: Any) -> list[LayerShape]:
    """What a token of the model adds to a cache, if answers can share a batch; else nothing.

    They can where every layer's state is the keys and values of all tokens, or of those in a
    window, and where a small batch was seen to give what the rows give alone. The model is then
    left with an attention that suits batches.
    """
    obstacle = _structural_obstacle(model)
    if not obstacle:
        own_attention = _attention_of(model)
        try:
            model.set_attn_implementation(ATTENTION)
            shapes = _shapes(model)
            obstacle = _numerical_obstacle(model, shapes)
        except Exception as error:  # noqa: BLE001  # architectures fail in ways of their own
            obstacle = f"{type(error).__name__}: {error}"
        if not obstacle:
            return shapes
        model.set_attn_implementation(own_attention)
    log.info("answers do not share a batch", extra={"why": obstacle})
    return []


def _attention_of(model: Any) -> str:
    name: str = model.config._attn_implementation  # noqa: SLF001  # it has no public name
    return name


def _structural_obstacle(model: Any) -> str:
    if model.config.is_encoder_decoder:
        return "an encoder-decoder architecture"
    if (attention := _attention_of(model)) not in ("sdpa", ATTENTION):
        return f"its attention is {attention}"
    cache = DynamicCache(config=model.config)
    known = {DynamicLayer, DynamicSlidingWindowLayer}
    if kinds := {type(layer).__name__ for layer in cache.layers if type(layer) not in known}:
        return f"its state is {', '.join(sorted(kinds))}"
    if types := _Windows.of(model).types - {FULL, SLIDING}:
        return f"it has layers of {', '.join(sorted(types))}"
    for module in model.modules():
        for kind in BATCH_DEPENDENT_ROPE:
            if kind in str(getattr(module, "rope_type", "")):
                return f"its rotary embedding is {kind}"
    return ""


@torch.inference_mode()
def _shapes(model: Any) -> list[LayerShape]:
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([[0]], device=model.device), past_key_values=cache, use_cache=True)
    shapes = []
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            raise TypeError("its state is not a cache of keys and values")
        shapes.append(LayerShape(layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1]))
    return shapes


def packed(model: Any, load: Callable[[], Any]) -> tuple[Any, int]:
    """A model that `layer_shapes` has accepted with packed linear layers; the bytes of those.

    Args:
        model: is not of use afterwards.
        load: makes it anew, for the case that it needs its layers as they were.
    """
    if not can_pack(model):
        return model, 0
    expected = _check_logits(model)
    try:
        size = pack(model)
        obstacle = _difference(_check_logits(model), expected, model.dtype)
    except Exception as error:  # noqa: BLE001  # architectures fail in ways of their own
        obstacle = f"{type(error).__name__}: {error}"
    if not obstacle:
        return model, size
    log.info("linear layers are not packed", extra={"why": obstacle})
    model = load()
    model.set_attn_implementation(ATTENTION)
    return model, 0


def _numerical_obstacle(model: Any, shapes: Sequence[LayerShape]) -> str:
    first, second = _check_prompts(model)
    batch = BatchModel(model, shapes, 4 * ALIGNMENT)
    batch.cache.resize(2 * ALIGNMENT, 0, 0)
    batch.prompt(1, second[:-1], 0)
    batch.prompt(0, first[:3], 0)
    batch.prompt(0, first[3:-1], 3)
    logits = batch.step([first[-1], second[-1]], [len(first) - 1, len(second) - 1])
    return _difference(logits, _check_logits(model), model.dtype)


def _check_prompts(model: Any) -> list[list[int]]:
    vocabulary = model.get_input_embeddings().num_embeddings
    return [[token % vocabulary for token in prompt] for prompt in CHECK_PROMPTS]


@torch.inference_mode()
def _check_logits(model: Any) -> torch.Tensor:
    """The last logits of each prompt alone, without our cache, shape (prompts, vocabulary)."""
    prompts = [torch.tensor([prompt], device=model.device) for prompt in _check_prompts(model)]
    return torch.stack([model(input_ids=prompt).logits[0, -1].float() for prompt in prompts])


def _difference(logits: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> str:
    share = float((logits - expected).abs().max() / expected.abs().max())
    tolerance = TOLERANCE.get(dtype, TOLERANCE_OF_HALVES)
    return "" if share <= tolerance else f"logits differ by {share:.2g} of the largest"
