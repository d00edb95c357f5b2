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


def generator(sampling: Sampling, device: torch.device) -> torch.Generator | None:
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
class Chooser:
    """What chooses the tokens of one answer.

    Attributes:
        sampling: its parameters.
        chance: see `generator`.
        ids: prompt and answer so far, shape (tokens,), for a repetition penalty.
    """

    sampling: Sampling
    chance: torch.Generator | None
    ids: torch.Tensor

    @classmethod
    def of(cls, sampling: Sampling, prompt: Sequence[int], device: torch.device) -> Chooser:
        """For an answer that begins."""
        known = prompt if sampling.repetition_penalty != 1 else ()
        ids = torch.tensor(known, dtype=torch.long, device=device)
        return cls(sampling, generator(sampling, device), ids)


def choose(logits: torch.Tensor, choosers: Sequence[Chooser]) -> torch.Tensor:
    """One token a row, on the device of the logits.

    Args:
        logits: float32, shape (rows, vocabulary); changed in place.
        choosers: one a row.
    """
    for row, chooser in zip(logits, choosers, strict=True):
        if (penalty := chooser.sampling.repetition_penalty) != 1:
            row[:] = RepetitionPenaltyLogitsProcessor(penalty)(chooser.ids[None], row[None])[0]
    tokens = logits.argmax(-1)
    chance = [index for index, each in enumerate(choosers) if each.chance]
    if chance:
        tokens[chance] = sampled(logits[chance], [choosers[index] for index in chance])
    for token, chooser in zip(tokens, choosers, strict=True):
        if chooser.sampling.repetition_penalty != 1:
            chooser.ids = torch.cat((chooser.ids, token[None]))
    return tokens


def sampled(logits: torch.Tensor, choosers: Sequence[Chooser]) -> torch.Tensor:
    """One token a row by chance; as `choose`. Temperature, then top_k, then top_p."""
    column = logits.new_tensor
    scores = logits / column([each.sampling.temperature for each in choosers])[:, None]
    best, ids = scores.topk(min(CANDIDATES, scores.shape[-1]))
    # All of a row's candidates that its top_k leaves; 0 leaves them all.
    top_k = column([each.sampling.top_k or scores.shape[-1] for each in choosers])[:, None]
    within = torch.arange(best.shape[-1], device=best.device) < top_k
    left = best.masked_fill(~within, -torch.inf)
    total = torch.where(top_k[:, 0] <= best.shape[-1], left.logsumexp(-1), scores.logsumexp(-1))
    shares = (left - total[:, None]).exp()
    mass = shares.cumsum(-1)
    top_p = column([each.sampling.top_p for each in choosers])[:, None]
    shares = shares.masked_fill(mass - shares >= top_p, 0)
    complete = ((mass[:, -1:] >= top_p) | (top_k <= best.shape[-1]))[:, 0].tolist()
    tokens = [
        row_ids[torch.multinomial(row_shares, 1, generator=chooser.chance)]
        if is_complete
        else _from_all(row[None], chooser)
        for row, row_ids, row_shares, chooser, is_complete in zip(
            scores, ids, shares, choosers, complete, strict=True
        )
    ]
    return torch.cat(tokens)


def _from_all(scores: torch.Tensor, chooser: Chooser) -> torch.Tensor:
    """From a vocabulary whose best candidates are not all that the parameters leave."""
    ids = chooser.ids[None]
    if chooser.sampling.top_k:
        scores = TopKLogitsWarper(chooser.sampling.top_k)(ids, scores)
    if chooser.sampling.top_p < 1:
        scores = TopPLogitsWarper(chooser.sampling.top_p)(ids, scores)
    return torch.multinomial(scores.softmax(-1)[0], 1, generator=chooser.chance)
