"""What models keep in themselves while they read a text, so that texts cannot share them freely."""

from __future__ import annotations

from typing import Any

# Rotary embeddings whose frequencies depend on the longest text of a batch.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
# The method of transformers' models whose layers hold the state of the text that they read.
_STATE_IN_LAYERS = "_setup_cache"


def length_dependent_rope(model: Any) -> str:
    """The kind of a model's rotary embedding, if texts of a batch change each other's; else ""."""
    for module in model.modules():
        for kind in LENGTH_DEPENDENT_ROPE:
            if kind in str(getattr(module, "rope_type", "")):
                return kind
    return ""


def reads_one_text_at_a_time(model: Any) -> bool:
    """Whether two texts that a model reads at once, in two threads, would change each other.

    Its layers hold their recurrent state (RecurrentGemma), or it sets its rotary frequencies anew
    for each text.
    """
    holds_state = any(hasattr(module, _STATE_IN_LAYERS) for module in model.modules())
    return holds_state or bool(length_dependent_rope(model))
