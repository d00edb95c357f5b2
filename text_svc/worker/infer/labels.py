"""Turns the outputs of models into the labels, scores and vectors of a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from ml import transformers_pb2 as pb
from shared.errors import InternalError, InvalidModelError, MissingFieldError
from text_svc.worker.infer.options import NoOptions

Function = Literal["sigmoid", "softmax", "none"]


class LabelOptions(NoOptions):
    """Options of pipelines that answer with labels.

    Attributes:
        top_k: how many of the best labels to return; 0 returns all.
        function_to_apply: to the model's output; absent is what the model's config means.
    """

    top_k: int = Field(0, ge=0)
    function_to_apply: Function | None = None


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


def label_names(config: Any) -> list[str]:
    """The names of a model's outputs.

    Raises:
        InvalidModelError: its config does not name them from 0 on, or a name is no text.
    """
    named = sorted(config.id2label)
    if named != list(range(len(named))):
        raise InvalidModelError(
            f"id2label in config.json has {len(named)} labels, numbered "
            f"{', '.join(map(str, named))[:100]}; they must be numbered from 0 on"
        )
    names = [str(config.id2label[index]) for index in named]
    # Half of a pair of surrogates, which JSON may write and no message can have.
    broken = next((each for each in names if each != each.encode(errors="replace").decode()), None)
    if broken is not None:
        raise InvalidModelError(
            f"label {names.index(broken)} of id2label in config.json is {ascii(broken)[:80]}, "
            "which is no valid Unicode"
        )
    return names


def best_first(logits: torch.Tensor, scores: torch.Tensor, top_k: int = 0) -> list[int]:
    """The indices of scores in their order, the best first; `top_k` 0 returns all.

    Scores close to 1 or 0 are the same number where their logits are not, so those decide then.

    Args:
        logits: what the scores were made of, shape (scores,).
        scores: do not fall where logits rise.

    Raises:
        InternalError: a logit or a score is not a finite number.
    """
    if not (logits.isfinite().all() and scores.isfinite().all()):
        raise InternalError("the model's scores are not finite numbers")
    keys = list(zip(scores.tolist(), logits.tolist(), strict=True))
    return sorted(range(len(keys)), key=keys.__getitem__, reverse=True)[: top_k or None]


def scored(
    names: Sequence[str], logits: torch.Tensor, scores: torch.Tensor, top_k: int = 0
) -> list[pb.ScoredLabel]:
    """Labels with their scores in the order of `best_first`, which also names what it raises."""
    return [
        pb.ScoredLabel(label=names[index], score=float(scores[index]))
        for index in best_first(logits, scores, top_k)
    ]


def classified(
    names: Sequence[str], logits: torch.Tensor, config: Any, options: LabelOptions
) -> pb.InferResponse:
    """The response of a classifier, with the scores that transformers' pipelines give.

    Args:
        names: of the labels.
        logits: of one text or image, shape (labels,).
        config: of the model.
        options: of the request.
    """
    function = options.function_to_apply or _own_function(config)
    logits = logits.float().cpu()
    scores = {"sigmoid": logits.sigmoid(), "softmax": logits.softmax(-1), "none": logits}[function]
    return pb.InferResponse(labels=scored(names, logits, scores, options.top_k))


def _own_function(config: Any) -> Function:
    """The function of a model's logits: none for a regression, whose numbers are what it predicts;
    a sigmoid where several labels can hold at once, or there is one; else softmax.
    """
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def vector(features: Any) -> pb.GeneratedEmbedding:
    """The vector of a batch of one, scaled to length 1, as vectors for comparison are.

    Raises:
        InternalError: it has numbers that are not finite.
    """
    pooled: torch.Tensor = getattr(features, "pooler_output", features)
    unit = torch.nn.functional.normalize(pooled[0].float(), dim=-1)
    if not unit.isfinite().all():
        raise InternalError("the model's vector has non-finite numbers")
    return pb.GeneratedEmbedding(values=unit.tolist())
