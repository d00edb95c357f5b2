"""What goes with a tiny model: its tokenizer, and weights that give answers of their own."""

from __future__ import annotations

import math
import string
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, processors

from tests.architectures.configs import BOS, EOS, PAD, POSITIONS, UNK, VOCABULARY

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
# A token is a character, so that a text tells the tokens that it was made of.
_LETTERS = string.ascii_letters + string.digits + string.punctuation + " "
CHARACTERS = (_LETTERS + "äöüßéèêàçñøåæœðþłšžčřěůğışαβγδεζηθ")[: VOCABULARY - len(SPECIAL)]


def tokenizer(*, around: bool) -> Any:
    """A tokenizer of characters; `around` puts <s> and </s> around a text, as encoders want."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *CHARACTERS])}
    own = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    own.decoder = decoders.Fuse()
    if around:
        own.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:0 </s>:0",
            special_tokens=[("<s>", BOS), ("</s>", EOS)],
        )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=own,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        unk_token=SPECIAL[UNK],
        cls_token=SPECIAL[BOS],
        sep_token=SPECIAL[EOS],
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=POSITIONS - 8,
    )


def strengthen(model: Any) -> None:
    """Larger weights: random ones of the usual size give answers that depend on the last token."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 or not parameter.is_floating_point() or not parameter.numel():
                continue
            size = math.prod(parameter.shape[1:]) if parameter.dim() > 2 else parameter.shape[-1]
            wanted = 1 / math.sqrt(min(size, parameter.shape[-1] if parameter.dim() == 3 else size))
            deviation = float(parameter.std())
            if deviation == 0.0 or not math.isfinite(deviation):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_((noise * 0.1).to(parameter.dtype))
            elif deviation < wanted:
                parameter.mul_(wanted / deviation)


def text(length: int, seed: int) -> str:
    """A text of so many tokens, without spaces at its ends."""
    generator = torch.Generator().manual_seed(seed)
    letters = string.ascii_lowercase
    picks = torch.randint(0, len(letters), (length,), generator=generator).tolist()
    return "".join(letters[pick] for pick in picks)
