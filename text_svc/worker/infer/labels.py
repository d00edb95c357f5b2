"""Labels, scores and vectors of an answer, out of what models give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ml import transformers_pb2 as pb
from shared.errors import MissingFieldError


def required_labels(request: pb.InferRequest) -> list[str]:
    """The labels of a request that cannot do without.

    Raises:
        MissingFieldError: there are none, or one is empty.
    """
    labels = list(request.labels)
    if not labels or not all(labels):
        raise MissingFieldError("labels is empty, or one of them is", field="labels")
    return labels


def scored(names: Sequence[str], scores: torch.Tensor, top_k: int = 0) -> list[pb.ScoredLabel]:
    """Labels with their scores, the best first; `top_k` 0 is all."""
    order = scores.argsort(descending=True, stable=True)[: top_k or None].tolist()
    return [pb.ScoredLabel(label=names[index], score=float(scores[index])) for index in order]


def class_names(config: Any) -> list[str]:
    """The labels of a classifier's outputs, in their order."""
    return [str(config.id2label.get(index, index)) for index in range(config.num_labels)]


def probabilities(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """Scores of one text's or image's logits, shape (labels,), as transformers' pipelines do."""
    many = config.problem_type == "multi_label_classification" or config.num_labels == 1
    return logits.float().sigmoid() if many else logits.float().softmax(-1)


def vector(features: Any) -> pb.GeneratedEmbedding:
    """The vector of a batch of one, made of length 1 as those that are compared are."""
    pooled: torch.Tensor = getattr(features, "pooler_output", features)
    unit = torch.nn.functional.normalize(pooled[0].float(), dim=-1)
    return pb.GeneratedEmbedding(values=unit.tolist())
