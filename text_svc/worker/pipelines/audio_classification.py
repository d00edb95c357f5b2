"""Labels of sounds, out of those that the model was trained with."""

from __future__ import annotations

import threading

from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.base import InferPipeline
from text_svc.worker.infer.labels import LabelOptions, classified, label_names

# Shorter sounds are less than one step of some models.
MIN_SECONDS = 0.1


class SoundClassifier(InferPipeline[LabelOptions]):
    """A sound to scores of labels.

    The model reads the sound at once. As in transformers, one with a window of its own, such as the
    10.24 seconds of most AST models, reads the beginning of a longer sound.

    Raises:
        InvalidModelError: the model's config does not name its labels.
    """

    takes = ("audio",)
    options = LabelOptions
    auto_class = AutoModelForAudioClassification
    processor_class = AutoFeatureExtractor

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._names = label_names(self.model.config)

    def infer(
        self, request: pb.InferRequest, options: LabelOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        rate: int = self.processor.sampling_rate
        samples = self.whole_sound(request, rate)
        if len(samples) < MIN_SECONDS * rate:
            raise InvalidArgumentError(
                f"audio has {len(samples) / rate:.3f} s; it must have {MIN_SECONDS:g} s or more",
                field="audio",
            )
        inputs = self.processor(samples, sampling_rate=rate, return_tensors="pt")
        return classified(self._names, self.forward(inputs)[0], self.model.config, options)
