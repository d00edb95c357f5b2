"""Tiny language models with random weights, made offline: real architectures in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONTEXT = 4096


def save_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> int:
    """A byte-level BPE tokenizer, trained on a little text; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<user>", "<assistant>", "<system>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "the sea and the sky, a story of snow; what is gravity? one, two, three, Grüße, 雪\n"
    tokenizer.train_from_iterator([words * 20], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": CONTEXT,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return int(tokenizer.get_vocab_size())


def byte_fallback_tokenizer() -> Any:
    """As SentencePiece models with byte tokens decode: "▁" is a space, the first one is cut off."""
    from tokenizers import Tokenizer, decoders, models

    words = ["<unk>", "▁", "▁the", "sea", "▁sea", "é", "雪", "▁雪"]
    vocabulary = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE({word: index for index, word in enumerate(vocabulary)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def save_llama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A Llama of two layers whose greedy answers end where they must."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = save_tokenizer(folder, changes.pop("chat_template", CHAT_TEMPLATE))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        **({"initializer_range": 0.5} | changes),
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # greedy answers never end by themselves
        model.lm_head.weight[config.eos_token_id] = 0
    model.save_pretrained(folder)
    return folder


TOOLS_TEMPLATE = (
    "{% if tools %}<system>{% for t in tools %}{{ t | tojson }}{% endfor %}"
    '<tool_call>{"name": ...}</tool_call>{% endif %}'
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
    "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
)


def save_mamba(folder: Path) -> Path:
    """A Mamba: a causal language model without a cache of keys and values."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    vocabulary = save_tokenizer(folder)
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.5,
    )
    MambaForCausalLM(config).save_pretrained(folder)
    return folder
