"""Texts, or pairs of texts, under the labels that the model was trained for."""

from __future__ import annotations

import threading

import torch
from transformers import AutoModelForSequenceClassification

from ml import transformers_pb2 as pb
from text_svc.processes.launch import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.infer.base import Family, LabelOptions
from text_svc.worker.infer.labels import (
    class_names,
    probabilities,
    scored,
)
from text_svc.worker.infer.service import load_family
from text_svc.worker.loaded import LoadedPipeline


class TextClassifier(Family[LabelOptions]):
    """Softmax over the labels, or a sigmoid each where several can hold at once."""

    takes = ("text", "text_pair")
    options = LabelOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        self.model = source.model(AutoModelForSequenceClassification)
        self._tokenizer = source.tokenizer(self.model.config)

    def infer(
        self, request: pb.InferRequest, options: LabelOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        pair = request.text_pair
        texts = [request.text] if request.text else [pair.first, pair.second]
        inputs = self._tokenizer(*texts, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(**self.to_model(inputs)).logits[0]
        config = self.model.config
        scores = probabilities(logits, config)
        return pb.InferResponse(labels=scored(class_names(config), scores, options.top_k))


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    return load_family(launch, TextClassifier)
