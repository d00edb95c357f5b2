"""Labels of the caller's own for a text, by a model of natural language inference."""

from __future__ import annotations

import threading

from pydantic import Field
from transformers import AutoModelForSequenceClassification

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.base import NoOptions, TextPipeline
from text_svc.worker.infer.labels import required_labels, scored


class ZeroShotOptions(NoOptions):
    """Options of a zero-shot classification.

    Attributes:
        multi_label: scores each label by itself; otherwise the scores have a sum of 1.
        hypothesis_template: a text with {} for the label.
    """

    multi_label: bool = False
    hypothesis_template: str = Field("This example is {}.", max_length=1000)


class ZeroShotClassifier(TextPipeline[ZeroShotOptions]):
    """How well each label, put into the hypothesis, follows from the text.

    Raises:
        InvalidModelError: the model has no label for entailment.
    """

    takes = ("text",)
    options = ZeroShotOptions
    auto_class = AutoModelForSequenceClassification

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        names = {name.lower(): index for name, index in self.model.config.label2id.items()}
        self._entails = next((i for name, i in names.items() if name.startswith("entail")), None)
        if self._entails is None:
            raise InvalidModelError(
                "zero-shot classification needs a model with the label entailment; this one has "
                f"{', '.join(names)[:200]}"
            )
        # As transformers' pipeline: the first label is the opposite, or else the last.
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
        texts = [(request.text, hypothesis) for hypothesis in hypotheses]
        encoded = self.tokenized(texts, cancelled, truncation="only_first")
        logits = self.logits(encoded, cancelled)
        if options.multi_label or len(labels) == 1:
            pairs = logits[:, [self._contradicts, self._entails]]
            scores = pairs.softmax(-1)[:, 1]
        else:
            scores = logits[:, self._entails].softmax(-1)
        return pb.InferResponse(labels=scored(labels, scores))
