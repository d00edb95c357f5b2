"""Parts of the tiny models: sizes, tokenizers, and the registry of their builders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "a photo of a cat and a dog on the red sofa . hello world what does the image describe ?",
    "this example is about music science history and the price of apples in paris caption speech",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;!?'-<>_/()[]",
]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
CLIP_VISION = {**SMALL, "image_size": 32, "patch_size": 8}
SMALL_SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# Builders by the names of their models.
BUILDERS: dict[str, Callable[[Path], None]] = {}


def builder(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Registers a builder of the model `name`."""

    def register(make: Callable[[Path], None]) -> Callable[[Path], None]:
        BUILDERS[name] = make
        return make

    return register


def bytes_tokenizer(special: list[str]) -> Tokenizer:
    """Byte-level BPE, trained on a little text."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def fast_tokenizer(
    tokens: dict[str, str],
    *,
    around: tuple[str, str] | None = None,
    extra: dict[str, str] | None = None,
) -> Any:
    """A tokenizer whose special tokens are these.

    Args:
        tokens: attribute to token.
        around: two of them that are put around a text.
        extra: more of them, of one kind of model alone.
    """
    tokenizer = bytes_tokenizer(list(dict.fromkeys(tokens.values())))
    if around:
        first, last = around
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in around],
        )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=extra or {}, **tokens
    )


def bert_tokenizer() -> Any:
    """With [CLS] and [SEP], and token types for pairs."""
    tokenizer = fast_tokenizer(BERT_TOKENS, around=("[CLS]", "[SEP]"))
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.model_max_length = 128
    return tokenizer


def clip_images(side: int, **options: Any) -> Any:
    """A processor that crops pictures to a square, on Pillow."""
    square = {"height": side, "width": side}
    return t.CLIPImageProcessorPil(crop_size=square, **options)


def save(folder: Path, *parts: Any) -> None:
    """Writes a model and what goes with it into one folder."""
    for part in parts:
        part.save_pretrained(folder)


def widen(model: Any) -> None:
    """Larger weights: random ones of the usual size give answers that are all alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
