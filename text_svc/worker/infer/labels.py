"""Turns the outputs of models into the labels, scores and vectors of a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ml import transformers_pb2 as pb
from shared.errors import MissingFieldError


def required_labels(request: pb.InferRequest) -> list[str]:
    """The labels of a request that must have some.

    Raises:
        MissingFieldError: there are none, or one is empty.
    """
    labels = list(request.labels)
    if not labels or not all(labels):
        raise MissingFieldError(
            "labels must not be empty or contain an empty label", field="labels"
        )
    return labels


def scored(names: Sequence[str], scores: torch.Tensor, top_k: int = 0) -> list[pb.ScoredLabel]:
    """Labels with their scores, the best first; `top_k` 0 returns all."""
    order = scores.argsort(descending=True, stable=True)[: top_k or None].tolist()
    return [pb.ScoredLabel(label=names[index], score=float(scores[index])) for index in order]


def classified(logits: torch.Tensor, config: Any, top_k: int) -> pb.InferResponse:
    """The response of a classifier, with the scores that transformers' pipelines give.

    Softmax over the labels, or a sigmoid each where several can hold at once.

    Args:
        logits: of one text or image, shape (labels,).
        config: of the model.
        top_k: see `scored`.
    """
    names = [str(config.id2label.get(index, index)) for index in range(config.num_labels)]
    several = config.problem_type == "multi_label_classification" or config.num_labels == 1
    scores = logits.float().sigmoid() if several else logits.float().softmax(-1)
    return pb.InferResponse(labels=scored(names, scores, top_k))


def vector(features: Any) -> pb.GeneratedEmbedding:
    """The vector of a batch of one, scaled to length 1, as vectors for comparison are."""
    pooled: torch.Tensor = getattr(features, "pooler_output", features)
    unit = torch.nn.functional.normalize(pooled[0].float(), dim=-1)
    return pb.GeneratedEmbedding(values=unit.tolist())
