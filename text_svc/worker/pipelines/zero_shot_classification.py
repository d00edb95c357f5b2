"""Texts sorted under labels that come with the call, by a model of natural language inference."""

from __future__ import annotations

import threading

from pydantic import Field
from transformers import AutoModelForSequenceClassification

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.processes.launch import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.infer.base import Family, NoOptions
from text_svc.worker.infer.labels import (
    required_labels,
    scored,
)
from text_svc.worker.infer.service import load_family
from text_svc.worker.loaded import LoadedPipeline


class ZeroShotOptions(NoOptions):
    """`multi_label` scores each label by itself, else they share a sum of 1."""

    multi_label: bool = False
    hypothesis_template: str = Field("This example is {}.", max_length=1000)


class ZeroShotClassifier(Family[ZeroShotOptions]):
    """How well each label, put into the hypothesis, follows from the text."""

    takes = ("text",)
    options = ZeroShotOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        self.model = source.model(AutoModelForSequenceClassification)
        self._tokenizer = source.tokenizer(self.model.config)
        names = {name.lower(): index for name, index in self.model.config.label2id.items()}
        self._entails = next((i for name, i in names.items() if name.startswith("entail")), None)
        if self._entails is None:
            raise InvalidModelError(
                "zero-shot classification needs a model with the label entailment; this one has "
                f"{', '.join(names)[:200]}"
            )
        # The pipelines of transformers take the first label, or the last, as the opposite.
        self._contradicts = -1 if self._entails == 0 else 0

    def infer(
        self, request: pb.InferRequest, options: ZeroShotOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        labels = required_labels(request)
        if "{}" not in options.hypothesis_template:
            raise InvalidArgumentError(
                "hypothesis_template has no {} for the label", field="options[hypothesis_template]"
            )
        hypotheses = [options.hypothesis_template.replace("{}", label) for label in labels]
        encoded = self._tokenizer([request.text] * len(labels), hypotheses, truncation="only_first")
        logits = self.logits(self._tokenizer, encoded, cancelled)
        if options.multi_label or len(labels) == 1:
            pairs = logits[:, [self._contradicts, self._entails]]
            scores = pairs.softmax(-1)[:, 1]
        else:
            scores = logits[:, self._entails].softmax(-1)
        return pb.InferResponse(labels=scored(labels, scores))


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    return load_family(launch, ZeroShotClassifier)
