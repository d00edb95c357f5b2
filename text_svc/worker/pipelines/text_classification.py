"""Labels of texts and of pairs of texts, out of those that the model was trained with."""

from __future__ import annotations

import threading

from transformers import AutoModelForSequenceClassification

from ml import transformers_pb2 as pb
from text_svc.worker.infer.base import LabelOptions, TextPipeline
from text_svc.worker.infer.labels import classified


class TextClassifier(TextPipeline[LabelOptions]):
    """A text, or a pair of texts, to scores of labels."""

    takes = ("text", "text_pair")
    options = LabelOptions
    auto_class = AutoModelForSequenceClassification

    def infer(
        self, request: pb.InferRequest, options: LabelOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        pair = request.text_pair
        texts = [request.text] if request.text else [pair.first, pair.second]
        inputs = self.processor(*texts, truncation=True, return_tensors="pt")
        return classified(self.forward(inputs)[0], self.model.config, options.top_k)
