"""Documents ordered by how well they answer a query, by a cross-encoder."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from ml import transformers_pb2 as pb
from shared.errors import InvalidModelError, MissingFieldError
from shared.files.modules import MODULES, TRANSFORMER, parse_modules
from shared.files.snapshot import SENTENCE_TRANSFORMERS
from text_svc.formats.json_files import read_json, read_json_object
from text_svc.formats.recipe import ACTIVATIONS, model_folder
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
        InvalidModelError: the model has more than one output, or its files of sentence-transformers
            ask for what is not supported.
    """

    takes = ("ranking",)
    options = RankingOptions

    def __init__(self, spec: WorkerSpec) -> None:
        own = _own_config(spec.folder)
        super().__init__(spec.model_copy(update={"folder": model_folder(spec.folder)}))
        if self.model.config.num_labels != 1:
            raise InvalidModelError(
                "reranking needs a model with one output; this one has "
                f"{self.model.config.num_labels}. As text-classification it scores text_pair"
            )
        self._activation = _activation(own, self.model.config)

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


def _own_config(folder: Path) -> dict[str, Any]:
    """config_sentence_transformers.json of a cross-encoder, which has it since version 5.4.

    Raises:
        InvalidModelError: it has a prompt for all texts, or modules.json lists more than a
            transformer.
    """
    own = read_json_object(folder / SENTENCE_TRANSFORMERS)
    if own.get("model_type") != "CrossEncoder":  # of an encoder that the model was made of
        return {}
    content = read_json(folder / MODULES)
    kinds = [TRANSFORMER] if content is None else [each.kind for each in parse_modules(content)]
    if kinds != [TRANSFORMER]:
        raise InvalidModelError(
            f"{MODULES} lists {', '.join(kinds)[:200]}; for reranking it must list "
            f"{TRANSFORMER} alone"
        )
    if own.get("default_prompt_name"):
        raise InvalidModelError(
            f"{SENTENCE_TRANSFORMERS} has a default prompt, which reranking does not support"
        )
    return own


def _activation(own: dict[str, Any], config: Any) -> nn.Module:
    """What a cross-encoder's files say is done with its output; a sigmoid if they say nothing.

    sentence-transformers writes the name of a class: since version 5.4 into a file of its own,
    before into config.json, since version 4 into a part of its own there.

    Args:
        own: config_sentence_transformers.json.
        config: of the model.

    Raises:
        InvalidModelError: it is not supported.
    """
    older = getattr(config, "sentence_transformers", None)
    name = own.get("activation_fn")
    name = name or (older.get("activation_fn") if isinstance(older, dict) else None)
    name = name or getattr(config, "sbert_ce_default_activation_function", None)
    if name is None:
        return nn.Sigmoid()
    package, _, kind = str(name).rpartition(".")
    if not package.startswith("torch.nn") or kind not in ACTIVATIONS:
        raise InvalidModelError(
            f"the activation {str(name)[:80]!r} is not supported; it must be one of "
            f"{', '.join(ACTIVATIONS)} of torch.nn"
        )
    activation: nn.Module = getattr(nn, kind)()
    return activation
