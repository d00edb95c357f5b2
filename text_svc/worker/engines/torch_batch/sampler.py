"""The next token of every row of a batch, each with its own parameters and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from text_svc.worker.engines.base import TokenScore
from text_svc.worker.engines.sampling import OPTIONAL, Sampling
from text_svc.worker.engines.torch_batch.forms import FormMask

# What these samplers have of it.
FEATURES = frozenset(OPTIONAL)
# Sorting a whole vocabulary costs more than a layer; most nuclei lie within this many tokens.
CANDIDATES = 256


def seeded_generator(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    """The random numbers of one generation; None if it is greedy."""
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
    """Samples the tokens of one generation.

    Attributes:
        sampling: its parameters.
        generator: see `seeded_generator`.
        ids: prompt and generated tokens, shape (tokens,), for the repetition penalty; empty
            without one.
        end_tokens: ids that end a generation.
        mask: of the form of its text, if it has one.
        counts: of the generated tokens, if it has what needs them.
        generated: tokens so far, if it has what needs their number.
        score: of its newest token, if it wants log-probabilities.
        off_form: its newest token is not what the form asks for, since none was.
    """

    sampling: Sampling
    generator: torch.Generator | None
    ids: torch.Tensor
    end_tokens: Sequence[int] = ()
    mask: FormMask | None = None
    counts: dict[int, int] = field(default_factory=dict)
    generated: int = 0
    score: TokenScore | None = None
    off_form: bool = False

    def __post_init__(self) -> None:
        # Looked up at each token.
        self.is_plain = not self.sampling.wanted

    @classmethod
    def of(
        cls,
        sampling: Sampling,
        prompt: Sequence[int],
        device: torch.device,
        end_tokens: Sequence[int] = (),
        mask: FormMask | None = None,
    ) -> TokenSampler:
        """The sampler of a generation that begins."""
        known = prompt if sampling.repetition_penalty != 1 else ()
        ids = torch.tensor(known, dtype=torch.long, device=device)
        return cls(sampling, seeded_generator(sampling, device), ids, end_tokens, mask)

    def adjust(self, row: torch.Tensor) -> None:
        """Changes the scores of the next token, shape (vocabulary,), except for the repetition."""
        sampling = self.sampling
        if sampling.logit_bias:
            _add(row, sampling.logit_bias)
        if self.generated < sampling.min_tokens:
            row[list(self.end_tokens)] = -torch.inf
        if sampling.presence_penalty or sampling.frequency_penalty:
            penalties = {
                token: -sampling.presence_penalty - sampling.frequency_penalty * count
                for token, count in self.counts.items()
            }
            _add(row, penalties)
        if self.mask:
            self.mask.hide(row)

    def chose(self, token: int) -> None:
        """Notes the next token."""
        self.generated += 1
        if self.mask:
            self.off_form = not self.mask.accept(token)
        if self.sampling.presence_penalty or self.sampling.frequency_penalty:
            self.counts[token] = self.counts.get(token, 0) + 1


def _add(row: torch.Tensor, changes: Mapping[int, float]) -> None:
    ids = torch.tensor(list(changes), dtype=torch.long, device=row.device)
    row[ids] += row.new_tensor(list(changes.values()))


def next_tokens(logits: torch.Tensor, samplers: Sequence[TokenSampler]) -> torch.Tensor:
    """One token per row, shape (rows,), on the device of the logits.

    Args:
        logits: float32, shape (rows, vocabulary); changed in place.
        samplers: one per row.
    """
    others = [(row, each) for row, each in enumerate(samplers) if not each.is_plain]
    own = {row: logits[row].log_softmax(-1) for row, each in others if each.sampling.logprobs}
    for index, sampler in others:
        sampler.adjust(logits[index])
    penalized = [each.sampling.repetition_penalty != 1 for each in samplers]
    for row, sampler, is_penalized in zip(logits, samplers, penalized, strict=True):
        if is_penalized:
            penalty = RepetitionPenaltyLogitsProcessor(sampler.sampling.repetition_penalty)
            row[:] = penalty(sampler.ids[None], row[None])[0]
    tokens = logits.argmax(-1)
    sampled = [index for index, each in enumerate(samplers) if each.generator]
    if sampled:
        tokens[sampled] = sample(logits[sampled], [samplers[index] for index in sampled])
    for token, sampler, is_penalized in zip(tokens, samplers, penalized, strict=True):
        if is_penalized:
            sampler.ids = torch.cat((sampler.ids, token[None]))
    for index, sampler in others:
        token = int(tokens[index])
        sampler.chose(token)
        if index in own:
            sampler.score = _score(own[index], token, sampler.sampling.top_logprobs)
    return tokens


def _score(logprobs: torch.Tensor, token: int, number: int) -> TokenScore:
    top = logprobs.topk(min(number, len(logprobs)))
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenScore(token, float(logprobs[token]), likeliest)


def sample(logits: torch.Tensor, samplers: Sequence[TokenSampler]) -> torch.Tensor:
    """Samples one token per row: temperature, top_k, top_p and min_p in turn, as transformers does.

    Only the CANDIDATES likeliest tokens of a row are sorted. A row whose parameters may choose a
    token beyond them is sampled from its whole vocabulary instead.

    Args:
        logits: float32, shape (rows, vocabulary).
        samplers: one per row, none of them greedy.
    """

    def column(values: Iterable[float]) -> torch.Tensor:
        return logits.new_tensor(list(values))[:, None]

    vocabulary = logits.shape[-1]
    top_k = column(each.sampling.top_k or vocabulary for each in samplers)
    top_p = column(each.sampling.top_p for each in samplers)
    scores = logits / column(each.sampling.temperature for each in samplers)
    best, ids = scores.topk(min(CANDIDATES, vocabulary))
    probabilities = _top_k_probabilities(best, top_k, scores)
    cumulative = probabilities.cumsum(-1)
    # A token is in the nucleus if the likelier ones together do not reach top_p yet.
    nucleus = probabilities.masked_fill(cumulative - probabilities >= top_p, 0)
    if any(each.sampling.min_p for each in samplers):
        least = probabilities[:, :1] * column(each.sampling.min_p for each in samplers)
        nucleus = nucleus.masked_fill(probabilities < least, 0)
    complete = (cumulative[:, -1:] >= top_p) | (top_k <= best.shape[-1])
    tokens = [
        row_ids[torch.multinomial(row_nucleus, 1, generator=sampler.generator)]
        if is_complete
        else sample_vocabulary(row[None], sampler)
        for row, row_ids, row_nucleus, sampler, is_complete in zip(
            scores, ids, nucleus, samplers, complete[:, 0].tolist(), strict=True
        )
    ]
    return torch.cat(tokens)


def _top_k_probabilities(
    best: torch.Tensor, top_k: torch.Tensor, scores: torch.Tensor
) -> torch.Tensor:
    """Probabilities of each row's candidates among all tokens that its top_k keeps.

    Args:
        best: the candidates' scores, likeliest first, shape (rows, candidates).
        top_k: shape (rows, 1).
        scores: of the vocabulary, shape (rows, vocabulary).
    """
    candidates = best.shape[-1]
    kept = torch.arange(candidates, device=best.device) < top_k
    best = best.masked_fill(~kept, -torch.inf)
    total = torch.where(top_k[:, 0] <= candidates, best.logsumexp(-1), scores.logsumexp(-1))
    return (best - total[:, None]).exp()


def sample_vocabulary(
    scores: torch.Tensor, sampler: TokenSampler, warpers: Iterable[LogitsProcessor] = ()
) -> torch.Tensor:
    """Samples a token of one row from its whole vocabulary; shape (1,).

    Args:
        scores: divided by the temperature, shape (1, vocabulary).
        sampler: of the row.
        warpers: change the scores after top_k and top_p.
    """
    ids = sampler.ids[None]
    if sampler.sampling.top_k:
        scores = TopKLogitsWarper(sampler.sampling.top_k)(ids, scores)
    if sampler.sampling.top_p < 1:
        scores = TopPLogitsWarper(sampler.sampling.top_p)(ids, scores)
    if sampler.sampling.min_p:
        scores = MinPLogitsWarper(sampler.sampling.min_p)(ids, scores)  # type: ignore[arg-type]
    for warper in warpers:
        scores = warper(ids, scores)
    return torch.multinomial(scores.softmax(-1)[0], 1, generator=sampler.generator)
