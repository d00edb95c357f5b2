"""Which architectures share a batch, and that packing linear layers changes nothing."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from text_svc.worker.engines.base import Generation
from text_svc.worker.engines.sampling import Sampling
from text_svc.worker.engines.torch_batch.decoder import BatchDecoder
from text_svc.worker.engines.torch_batch.eligibility import layer_shapes, packed_model
from text_svc.worker.engines.torch_batch.model import BatchModel
from text_svc.worker.engines.torch_batch.packed_linear import (
    PackedLinear,
    can_pack,
    pack,
)

TINY = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.5}
MLA = {
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
    "n_routed_experts": 4,
}
BATCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "gpt2": ("GPT2", GPT2),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "phi": ("Phi", {"num_key_value_heads": 4}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "deepseek": ("DeepseekV3", MLA),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "mistral without a window": ("Mistral", {"sliding_window": None}),
    "phi3": ("Phi3", {"sliding_window": 8, "num_key_value_heads": 4}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 8, "attn_logit_softcapping": None}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 6}),
    "cohere2": ("Cohere2", {"sliding_window": 8, "num_hidden_layers": 4}),
    "qwen2 with windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "olmo3": ("Olmo3", {"sliding_window": 8, "num_hidden_layers": 4}),
    "llama3 rope": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
}
ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "a recurrent state": ("Mamba", {"state_size": 4}),
    "chunks of attention": ("Llama4Text", {"attention_chunk_size": 8, "head_dim": 8}),
    "positions in the mask": ("Bloom", {"n_head": 4, "n_layer": 2}),
    "frequencies of the longest": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
}


def make(name: str, changes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    known = GPT2 if name == "GPT2" else TINY | changes
    config = getattr(transformers, f"{name}Config")(**known)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def generated(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of transformers' own `generate`, one prompt after the other."""
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        outputs.append(output[0, len(prompt) :].tolist())
    return outputs


def batched(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    batch = BatchDecoder(BatchModel(model, layer_shapes(model), 1024), (), 8)
    answers = {Generation(prompt, Sampling(0, 1, 12)): [] for prompt in prompts}
    for each in answers:
        batch.begin(each)
    while not batch.idle:
        for each, step in batch.step():
            answers[each] += step.tokens
    return list(answers.values())


@pytest.mark.parametrize(("name", "changes"), BATCHED.values(), ids=BATCHED)
def test_a_cache_of_keys_and_values_is_batched(name: str, changes: dict[str, Any]) -> None:
    model = make(name, changes)
    # The longest is read in two pieces.
    prompts = [[3 + place % 7 for place in range(length)] + [2, 4] for length in (1, 9, 4, 20, 150)]
    expected = generated(model, prompts)
    assert layer_shapes(model)
    model, _ = packed_model(model, lambda: pytest.fail("needs its layers as they were"))
    assert batched(model, prompts) == expected
    assert [batched(model, [prompt])[0] for prompt in prompts] == expected


@pytest.mark.parametrize(("name", "changes"), ALONE.values(), ids=ALONE)
def test_what_depends_on_other_rows_is_not(name: str, changes: dict[str, Any]) -> None:
    model = make(name, changes)
    attention = model.config._attn_implementation
    expected = generated(model, [[5, 6, 7]])
    assert layer_shapes(model) == []
    assert model.config._attn_implementation == attention
    assert generated(model, [[5, 6, 7]]) == expected


def test_packed_layers_are_used_where_they_are_right_only() -> None:
    model = make("Llama", {"tie_word_embeddings": True})
    layer_shapes(model)
    changed, size = packed_model(model, lambda: pytest.fail("Llama needs no layers as they were"))
    assert size == sum(m.packed_bytes for m in changed.modules() if isinstance(m, PackedLinear))
    assert size > 0
    assert changed.get_input_embeddings().weight.shape == (100, 32)
    assert isinstance(changed.lm_head, PackedLinear)

    class NeedsWeight(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            assert self.lm_head.weight is not None
            return super().forward(*args, **kwargs)

    fresh = make("Llama", {})
    made = NeedsWeight(fresh.config)
    layer_shapes(made)
    changed, size = packed_model(made, lambda: fresh)
    assert (changed, size) == (fresh, 0)


@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_is_linear(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 70, bias=bias)
    model = nn.Sequential(linear, nn.Bilinear(2, 2, 2))
    assert can_pack(model)
    assert pack(model) == 48 * 70 * 4
    assert not can_pack(model)
    with torch.inference_mode():
        for shape in ((1, 48), (1, 1, 48), (8, 1, 48), (1, 37, 48), (200, 48)):
            rows = torch.randn(shape)
            torch.testing.assert_close(model[0](rows), linear(rows), rtol=1e-5, atol=1e-5)


def test_halves_are_not_packed() -> None:
    assert not can_pack(nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16)))
