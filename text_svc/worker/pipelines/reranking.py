"""Documents in the order in which they answer a query, by a cross-encoder."""

from __future__ import annotations

import threading

from pydantic import Field
from transformers import AutoModelForSequenceClassification

from ml import transformers_pb2 as pb
from shared.errors import InvalidModelError, MissingFieldError
from text_svc.processes.launch import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.infer.base import Family, NoOptions
from text_svc.worker.infer.service import load_family
from text_svc.worker.loaded import LoadedPipeline


class RankingOptions(NoOptions):
    """`top_k`: the best so many documents, 0 is all. `raw`: the model's number, not its sigmoid."""

    top_k: int = Field(0, ge=0)
    raw: bool = False


class Reranker(Family[RankingOptions]):
    """A score for each pair of query and document; as sentence-transformers' CrossEncoder."""

    takes = ("ranking",)
    options = RankingOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        self.model = source.model(AutoModelForSequenceClassification)
        self._tokenizer = source.tokenizer(self.model.config)
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
        encoded = self._tokenizer(
            [query] * len(documents), documents, truncation=True, return_token_type_ids=None
        )
        scores = self.logits(self._tokenizer, encoded, cancelled)[:, 0]
        if not options.raw:
            scores = scores.sigmoid()
        order = scores.argsort(descending=True, stable=True)[: options.top_k or None].tolist()
        return pb.InferResponse(
            documents=[
                pb.RankedDocument(index=index, score=float(scores[index])) for index in order
            ]
        )


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    return load_family(launch, Reranker)
