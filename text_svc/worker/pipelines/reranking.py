"""Documents ordered by how well they answer a query, by a cross-encoder."""

from __future__ import annotations

import threading
from typing import Any

from pydantic import Field
from torch import nn

from ml import transformers_pb2 as pb
from shared.errors import InvalidModelError, MissingFieldError
from text_svc.formats.recipe import ACTIVATIONS
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.labels import best_first
from text_svc.worker.infer.options import NoOptions
from text_svc.worker.infer.scoring import ScoringPipeline


class RankingOptions(NoOptions):
    """Options of a ranking.

    Attributes:
        top_k: how many of the best documents to return; 0 returns all.
        raw: scores are the model's output, without its activation.
    """

    top_k: int = Field(0, ge=0)
    raw: bool = False


class Reranker(ScoringPipeline[RankingOptions]):
    """A score for each pair of query and document, as sentence-transformers' CrossEncoder.

    Raises:
        InvalidModelError: the model has more than one output, or an activation that is not
            supported.
    """

    takes = ("ranking",)
    options = RankingOptions

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        if self.model.config.num_labels != 1:
            raise InvalidModelError(
                "reranking needs a model with one output; this one has "
                f"{self.model.config.num_labels}. As text-classification it scores text_pair"
            )
        self._activation = _activation(self.model.config)

    def infer(
        self, request: pb.InferRequest, options: RankingOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        query, documents = request.ranking.query, list(request.ranking.documents)
        if not query or not documents:
            raise MissingFieldError("ranking has no query or no documents", field="ranking")
        pairs = [(query, document) for document in documents]
        naming = "ranking.documents[{}]".format
        encoded = self.tokenized(pairs, cancelled, naming)
        logits = self.logits(encoded, cancelled, naming)[:, 0]
        scores = logits if options.raw else self._activation(logits)
        return pb.InferResponse(
            documents=[
                pb.RankedDocument(index=index, score=float(scores[index]))
                for index in best_first(logits, scores, options.top_k)
            ]
        )


def _activation(config: Any) -> nn.Module:
    """What a cross-encoder's config says is done with its output; a sigmoid if it says nothing.

    sentence-transformers writes the name of a class, since version 4 into a part of its own.

    Raises:
        InvalidModelError: it is not supported.
    """
    own = getattr(config, "sentence_transformers", None)
    name = own.get("activation_fn") if isinstance(own, dict) else None
    name = name or getattr(config, "sbert_ce_default_activation_function", None)
    if name is None:
        return nn.Sigmoid()
    package, _, kind = str(name).rpartition(".")
    if not package.startswith("torch.nn") or kind not in ACTIVATIONS:
        raise InvalidModelError(
            f"the activation {str(name)[:80]!r} of config.json is not supported; it must be one "
            f"of {', '.join(ACTIVATIONS)} of torch.nn"
        )
    activation: nn.Module = getattr(nn, kind)()
    return activation
