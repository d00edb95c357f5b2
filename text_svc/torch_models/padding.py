"""Whether a sentence encoder gives a text the same vector with padding beside it as without."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from text_svc.torch_models.own_state import length_dependent_rope
from text_svc.torch_models.sentence_encoder import SentenceEncoder

log = logging.getLogger(__name__)

# Tokens of the texts that are tried, and the ids that they repeat, which every vocabulary has. They
# are not those that padding usually has.
_SHORT, _LONG = 5, 37
_IDS = (4, 5, 6, 7, 8, 9, 10)
# Largest difference, relative to the largest number of the vectors, by dtype; other dtypes are
# half-precision ones.
MAX_DIFFERENCE = {torch.float32: 1e-4}
MAX_HALF_DIFFERENCE = 0.05


@torch.inference_mode()
def padding_changes(module: SentenceEncoder) -> bool:
    """Whether texts of different length cannot share a batch.

    Some models have no mask (FNet), or mix a text with what stands beside it all the same, by
    convolutions or by landmarks of the whole width (ConvBERT, Nystromformer, YOSO). And rotary
    frequencies may depend on the longest text, beyond the lengths that are tried here.
    """
    if length_dependent_rope(module):
        return True
    short, long = (_ids(module, length) for length in (_SHORT, _LONG))
    alone = torch.cat([module(ids, torch.ones_like(ids)) for ids in (short, long)])
    padded = torch.zeros_like(long)
    padded[:, :_SHORT] = short
    mask = torch.stack([torch.arange(_LONG, device=long.device) < n for n in (_SHORT, _LONG)])
    try:
        together = module(torch.cat([padded, long]), mask.long())
    except Exception:  # architectures fail in ways of their own
        log.info("this model takes no padding", exc_info=True)
        return True
    difference = float((together - alone).abs().max() / alone.abs().max())
    dtype = getattr(module.transformer, "dtype", torch.float32)
    limit = MAX_DIFFERENCE.get(dtype, MAX_HALF_DIFFERENCE)
    if difference <= limit:
        return False
    log.info("padding changes this model's vectors", extra={"difference": difference})
    return True


def _ids(module: SentenceEncoder, length: int) -> Tensor:
    vocabulary = getattr(module.transformer.config, "vocab_size", None) or max(_IDS) + 1
    ids = [_IDS[place % len(_IDS)] % vocabulary for place in range(length)]
    return torch.tensor([ids], device=module.transformer.device)
