"""Attention masks that can be traced: transformers' own code for them looks at values and shapes.

Which token attends to which is asked of transformers' own mask functions. Only what is around these
is replaced: `sdpa_mask` and `eager_mask` of `transformers.masking_utils`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

# Added to the score of a token that is not attended to. It is finite: of a token that attends to
# none, which is padding, the result is then a number.
_MASKED = -1e9


@contextmanager
def traceable_masks() -> Iterator[None]:
    """Models make their masks in a way that can be traced, in this context.

    Texts must be padded on the right.
    """
    masks = ALL_MASK_ATTENTION_FUNCTIONS
    masks["sdpa"], masks["eager"] = partial(_mask, may_be_none=True), partial(_mask)
    try:
        yield
    finally:
        del masks["sdpa"], masks["eager"]


def _mask(
    *,
    may_be_none: bool = False,
    batch_size: Any,
    q_length: Any,
    kv_length: Any,
    mask_function: Any,
    attention_mask: Tensor | None,
    allow_is_causal_skip: bool = False,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    device: Any = "cpu",
    **_: Any,
) -> Tensor | None:
    """A mask of shape (texts, 1, tokens, tokens) that is added to the scores.

    None is for tokens that attend to all before them: "sdpa" does that without a mask, and padding
    is behind the tokens of a text.
    """
    if may_be_none and allow_is_causal_skip and mask_function is causal_mask_function:
        return None
    texts = torch.arange(batch_size, device=device)[:, None, None, None]
    head = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=device)
    queries = (torch.arange(q_length, device=device) + q_offset)[None, None, :, None]
    keys = (torch.arange(kv_length, device=device) + kv_offset)[None, None, None, :]
    seen = mask_function(texts, head, queries, keys)
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, :].bool()
    hidden: Tensor = 1.0 - seen.to(torch.float32)
    return hidden.expand(batch_size, -1, q_length, -1) * _MASKED
