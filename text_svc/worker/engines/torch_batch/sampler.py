"""The next token of answers: greedy or by chance, with every answer's own parameters and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from text_svc.worker.engines.sampling import Sampling

# Sorting a whole vocabulary costs more than a layer; most nuclei lie within so many tokens.
CANDIDATES = 256


def seeded_generator(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    """The source of chance of one answer; None where it needs none."""
    if not sampling.temperature:
        return None
    source = torch.Generator(device)
    if sampling.seed is None:
        source.seed()
    else:
        source.manual_seed(sampling.seed)
    return source


@dataclass
class TokenSampler:
    """What chooses the tokens of one answer.

    Attributes:
        sampling: its parameters.
        generator: see `seeded_generator`.
        ids: prompt and answer so far, shape (tokens,), for a repetition penalty.
    """

    sampling: Sampling
    generator: torch.Generator | None
    ids: torch.Tensor

    @classmethod
    def of(cls, sampling: Sampling, prompt: Sequence[int], device: torch.device) -> TokenSampler:
        """For an answer that begins."""
        known = prompt if sampling.repetition_penalty != 1 else ()
        ids = torch.tensor(known, dtype=torch.long, device=device)
        return cls(sampling, seeded_generator(sampling, device), ids)


def next_tokens(logits: torch.Tensor, samplers: Sequence[TokenSampler]) -> torch.Tensor:
    """One token a row, on the device of the logits.

    Args:
        logits: float32, shape (rows, vocabulary); changed in place.
        choosers: one a row.
    """
    for row, sampler in zip(logits, samplers, strict=True):
        if (penalty := sampler.sampling.repetition_penalty) != 1:
            row[:] = RepetitionPenaltyLogitsProcessor(penalty)(sampler.ids[None], row[None])[0]
    tokens = logits.argmax(-1)
    sampled = [index for index, each in enumerate(samplers) if each.generator]
    if sampled:
        tokens[sampled] = sample(logits[sampled], [samplers[index] for index in sampled])
    for token, sampler in zip(tokens, samplers, strict=True):
        if sampler.sampling.repetition_penalty != 1:
            sampler.ids = torch.cat((sampler.ids, token[None]))
    return tokens


def sample(logits: torch.Tensor, samplers: Sequence[TokenSampler]) -> torch.Tensor:
    """One token a row by chance; as `choose`. Temperature, then top_k, then top_p."""
    column = logits.new_tensor
    scores = logits / column([each.sampling.temperature for each in samplers])[:, None]
    best, ids = scores.topk(min(CANDIDATES, scores.shape[-1]))
    # All of a row's candidates that its top_k leaves; 0 leaves them all.
    top_k = column([each.sampling.top_k or scores.shape[-1] for each in samplers])[:, None]
    within = torch.arange(best.shape[-1], device=best.device) < top_k
    left = best.masked_fill(~within, -torch.inf)
    total = torch.where(top_k[:, 0] <= best.shape[-1], left.logsumexp(-1), scores.logsumexp(-1))
    shares = (left - total[:, None]).exp()
    mass = shares.cumsum(-1)
    top_p = column([each.sampling.top_p for each in samplers])[:, None]
    shares = shares.masked_fill(mass - shares >= top_p, 0)
    complete = ((mass[:, -1:] >= top_p) | (top_k <= best.shape[-1]))[:, 0].tolist()
    tokens = [
        row_ids[torch.multinomial(row_shares, 1, generator=sampler.generator)]
        if is_complete
        else _sample_vocabulary(row[None], sampler)
        for row, row_ids, row_shares, sampler, is_complete in zip(
            scores, ids, shares, samplers, complete, strict=True
        )
    ]
    return torch.cat(tokens)


def _sample_vocabulary(scores: torch.Tensor, sampler: TokenSampler) -> torch.Tensor:
    """From a vocabulary whose best candidates are not all that the parameters leave."""
    ids = sampler.ids[None]
    if sampler.sampling.top_k:
        scores = TopKLogitsWarper(sampler.sampling.top_k)(ids, scores)
    if sampler.sampling.top_p < 1:
        scores = TopPLogitsWarper(sampler.sampling.top_p)(ids, scores)
    return torch.multinomial(scores.softmax(-1)[0], 1, generator=sampler.generator)
