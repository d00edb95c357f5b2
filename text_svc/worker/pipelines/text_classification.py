"""Labels of texts and of pairs of texts, out of those that the model was trained with."""

from __future__ import annotations

import threading

from ml import transformers_pb2 as pb
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.labels import LabelOptions, classified, label_names
from text_svc.worker.infer.scoring import ScoringPipeline


class TextClassifier(ScoringPipeline[LabelOptions]):
    """A text, or a pair of texts, to scores of labels; what the model does not read is truncated.

    Raises:
        InvalidModelError: the model's config does not name its labels.
    """

    takes = ("text", "text_pair")
    options = LabelOptions

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._names = label_names(self.model.config)

    def infer(
        self, request: pb.InferRequest, options: LabelOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        pair = request.text_pair
        texts = (request.text,) if request.text else (pair.first, pair.second)
        field = "text" if request.text else "text_pair"
        encoded = self.tokenized([texts], cancelled, field.format)
        logits = self.logits(encoded, cancelled, field.format)[0]
        return classified(self._names, logits, self.model.config, options)
