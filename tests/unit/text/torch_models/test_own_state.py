"""Models whose texts would change each other's: told from others, and given one text at a time."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, RecurrentGemmaConfig
from transformers import RecurrentGemmaForCausalLM as RecurrentGemma

from text_svc.torch_models.own_state import length_dependent_rope, reads_one_text_at_a_time
from text_svc.worker.engines.base import Limits
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.transformers import TransformersEngine

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def llama(rope: dict[str, Any] | None = None) -> Any:
    config = LlamaConfig(**SIZES, max_position_embeddings=64)
    if rope:
        config.rope_parameters = {"rope_theta": 10_000.0, **rope}
    return LlamaForCausalLM(config).eval()


def recurrent_gemma() -> Any:
    config = RecurrentGemmaConfig(**SIZES, lru_width=16, block_types=["recurrent", "attention"])
    return RecurrentGemma(config).eval()


@pytest.mark.parametrize(
    ("model", "rope", "running"),
    [
        (llama(), "", 2),
        (llama({"rope_type": "dynamic", "factor": 2.0}), "dynamic", 1),
        (recurrent_gemma(), "", 1),
    ],
    ids=["llama", "dynamic", "recurrent"],
)
async def test_what_a_model_keeps_in_itself(model: Any, rope: str, running: int) -> None:
    assert length_dependent_rope(model) == rope
    assert reads_one_text_at_a_time(model) is (running == 1)
    limits = Limits(context=64, running=2, waiting=4)
    engine = TransformersEngine(model, limits, (), EngineMetrics("tiny"))
    assert engine.limits.running == running
    await engine.close()
