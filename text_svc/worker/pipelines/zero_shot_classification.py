"""Labels of the caller's own for a text, by a model of natural language inference."""

from __future__ import annotations

import threading

from pydantic import Field

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.labels import label_names, required_labels, scored
from text_svc.worker.infer.options import NoOptions
from text_svc.worker.infer.scoring import ScoringPipeline


class ZeroShotOptions(NoOptions):
    """Options of a zero-shot classification.

    Attributes:
        multi_label: scores each label by itself; otherwise the scores have a sum of 1.
        hypothesis_template: a text with {} for the label.
    """

    multi_label: bool = False
    hypothesis_template: str = Field("This example is {}.", max_length=1000)


class ZeroShotClassifier(ScoringPipeline[ZeroShotOptions]):
    """How well each label, put into the hypothesis, follows from the text.

    Raises:
        InvalidModelError: the model has no label for entailment.
    """

    takes = ("text",)
    options = ZeroShotOptions

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        names = [name.lower() for name in label_names(self.model.config)]
        entails = _starting("entail", names)
        if entails is None:
            raise InvalidModelError(
                "zero-shot classification needs a model with the label entailment and at least one "
                f"other; this one has {', '.join(names)[:200]}"
            )
        contradicts = _starting("contradict", names)
        if contradicts is None:  # as transformers' pipeline: the first label, or else the last
            contradicts = len(names) - 1 if entails == 0 else 0
        self._entails, self._contradicts = entails, contradicts

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
        encoded = self.tokenized(texts, cancelled, "labels[{}]".format, truncation="only_first")
        logits = self.logits(encoded, cancelled, "labels[{}]".format)
        entails = logits[:, self._entails]
        if options.multi_label or len(labels) == 1:
            entails = entails - logits[:, self._contradicts]
            scores = entails.sigmoid()  # the softmax of the two
        else:
            scores = entails.softmax(-1)
        return pb.InferResponse(labels=scored(labels, entails, scores))


def _starting(word: str, names: list[str]) -> int | None:
    """The index of a name among others that begins with a word; None if there is none."""
    found = [index for index, name in enumerate(names) if name.startswith(word)]
    return found[0] if found and len(names) > 1 else None
