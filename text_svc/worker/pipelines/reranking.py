"""Documents ordered by how well they answer a query, by a cross-encoder."""

from __future__ import annotations

import threading

from pydantic import Field
from transformers import AutoModelForSequenceClassification

from ml import transformers_pb2 as pb
from shared.errors import InvalidModelError, MissingFieldError
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.base import NoOptions, TextPipeline


class RankingOptions(NoOptions):
    """Options of a ranking.

    Attributes:
        top_k: how many of the best documents to return; 0 returns all.
        raw: scores are the model's output, not its sigmoid.
    """

    top_k: int = Field(0, ge=0)
    raw: bool = False


class Reranker(TextPipeline[RankingOptions]):
    """A score for each pair of query and document, as sentence-transformers' CrossEncoder.

    Raises:
        InvalidModelError: the model has more than one output.
    """

    takes = ("ranking",)
    options = RankingOptions
    auto_class = AutoModelForSequenceClassification

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        if self.model.config.num_labels != 1:
            raise InvalidModelError(
                "reranking needs a model with one output; this one has "
                f"{self.model.config.num_labels}"
            )

    def infer(
        self, request: pb.InferRequest, options: RankingOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        query, documents = request.ranking.query, list(request.ranking.documents)
        if not query or not documents:
            raise MissingFieldError("ranking has no query or no documents", field="ranking")
        pairs = [(query, document) for document in documents]
        encoded = self.tokenized(pairs, cancelled, truncation=True, return_token_type_ids=None)
        scores = self.logits(encoded, cancelled)[:, 0]
        if not options.raw:
            scores = scores.sigmoid()
        order = scores.argsort(descending=True, stable=True)[: options.top_k or None].tolist()
        return pb.InferResponse(
            documents=[
                pb.RankedDocument(index=index, score=float(scores[index])) for index in order
            ]
        )
