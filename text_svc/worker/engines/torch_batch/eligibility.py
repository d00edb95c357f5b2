"""Whether a model can run in batches: its structure, and a test of its numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from text_svc.torch_models.own_state import length_dependent_rope
from text_svc.worker.engines.torch_batch.kv_cache import ALIGNMENT, LayerShape
from text_svc.worker.engines.torch_batch.model import (
    ATTENTION,
    FULL,
    SLIDING,
    AttentionWindows,
    BatchModel,
)
from text_svc.worker.engines.torch_batch.packed_linear import can_pack, pack

log = logging.getLogger(__name__)

# The test: two prompts of different length and one more token of each, in a batch and alone.
CHECK_PROMPTS = ((1, 2, 3, 5, 8, 13, 21, 34), (4, 9, 16, 25, 36))
# Largest difference of two logits, relative to the largest logit, by dtype; other dtypes are
# half-precision ones.
MAX_DIFFERENCE = {torch.float32: 1e-3}
MAX_HALF_DIFFERENCE = 0.05


def layer_shapes(model: Any) -> list[LayerShape]:
    """What a token of the model adds to each layer of a cache; empty if it cannot be batched.

    A model can be batched if the state of every layer consists of the keys and values of all
    tokens, or of those in a window, and if a small batch gives the same logits as each of its rows
    alone. Such a model is left with the attention that `BatchModel` needs; any other one is left
    as it was.
    """
    obstacle = _structural_obstacle(model)
    if not obstacle:
        own_attention = _attention_of(model)
        try:
            model.set_attn_implementation(ATTENTION)
            shapes = _cache_shapes(model)
            obstacle = _numerical_obstacle(model, shapes)
        except Exception as error:  # noqa: BLE001  # architectures fail in ways of their own
            obstacle = f"{type(error).__name__}: {error}"
        if not obstacle:
            return shapes
        model.set_attn_implementation(own_attention)
    log.info("generations of this model do not share a batch", extra={"why": obstacle})
    return []


def packed_model(model: Any, load: Callable[[], Any]) -> tuple[Any, int]:
    """Packs the linear layers of a model, if its logits stay the same.

    Args:
        model: one that `layer_shapes` accepts. Do not use it afterwards.
        load: loads the model anew, if it has to keep its layers.

    Returns:
        The model to use, and the bytes of its packed weights.
    """
    if not can_pack(model):
        return model, 0
    expected = _logits_alone(model)
    try:
        size = pack(model)
        obstacle = _difference(_logits_alone(model), expected, model.dtype)
    except Exception as error:  # noqa: BLE001  # architectures fail in ways of their own
        obstacle = f"{type(error).__name__}: {error}"
    if not obstacle:
        return model, size
    log.info("linear layers are not packed", extra={"why": obstacle})
    model = load()
    model.set_attn_implementation(ATTENTION)
    return model, 0


def _attention_of(model: Any) -> str:
    name: str = model.config._attn_implementation  # noqa: SLF001  # it has no public name
    return name


def _structural_obstacle(model: Any) -> str:
    """Why the model's structure does not allow batches; "" if it does."""
    if model.config.is_encoder_decoder:
        return "an encoder-decoder architecture"
    if (attention := _attention_of(model)) not in ("sdpa", ATTENTION):
        return f"its attention is {attention}"
    cache = DynamicCache(config=model.config)
    known = {DynamicLayer, DynamicSlidingWindowLayer}
    if kinds := {type(layer).__name__ for layer in cache.layers if type(layer) not in known}:
        return f"its state is {', '.join(sorted(kinds))}"
    if types := AttentionWindows.of(model).types - {FULL, SLIDING}:
        return f"it has layers of type {', '.join(sorted(types))}"
    if kind := length_dependent_rope(model):
        return f"its rotary embedding is {kind}"
    return ""


@torch.inference_mode()
def _cache_shapes(model: Any) -> list[LayerShape]:
    """The shapes that transformers' own cache has after one token."""
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([[0]], device=model.device), past_key_values=cache, use_cache=True)
    shapes = []
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            raise TypeError("its state is not a cache of keys and values")
        shapes.append(LayerShape(layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1]))
    return shapes


def _numerical_obstacle(model: Any, shapes: Sequence[LayerShape]) -> str:
    """How the logits of a batch differ from those of its rows alone; "" if they do not.

    The batch does what a decoder does: one prompt is read at once, another in two pieces, and
    then both go on by one token.
    """
    first, second = _check_prompts(model)
    batch = BatchModel(model, shapes, 4 * ALIGNMENT)
    batch.cache.resize(2 * ALIGNMENT, 0, 0)
    batch.prompt(1, second[:-1], 0)
    batch.prompt(0, first[:3], 0)
    batch.prompt(0, first[3:-1], 3)
    logits = batch.step([first[-1], second[-1]], [len(first) - 1, len(second) - 1])
    return _difference(logits, _logits_alone(model), model.dtype)


def _check_prompts(model: Any) -> list[list[int]]:
    vocabulary = model.get_input_embeddings().num_embeddings
    return [[token % vocabulary for token in prompt] for prompt in CHECK_PROMPTS]


@torch.inference_mode()
def _logits_alone(model: Any) -> torch.Tensor:
    """The last logits of each prompt alone, without our cache, shape (prompts, vocabulary)."""
    prompts = [torch.tensor([prompt], device=model.device) for prompt in _check_prompts(model)]
    return torch.stack([model(input_ids=prompt).logits[0, -1].float() for prompt in prompts])


def _difference(logits: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> str:
    share = float((logits - expected).abs().max() / expected.abs().max())
    limit = MAX_DIFFERENCE.get(dtype, MAX_HALF_DIFFERENCE)
    return "" if share <= limit else f"logits differ by {share:.2g} of the largest"
