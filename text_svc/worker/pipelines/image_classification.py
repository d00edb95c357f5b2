"""Labels of images, out of those that the model was trained with."""

from __future__ import annotations

import threading

from transformers import AutoModelForImageClassification

# transformers' public name for it requires torchvision, which processors on Pillow do without.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ml import transformers_pb2 as pb
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.base import InferPipeline
from text_svc.worker.infer.labels import LabelOptions, classified, label_names


class ImageClassifier(InferPipeline[LabelOptions]):
    """An image to scores of labels.

    Raises:
        InvalidModelError: the model's config does not name its labels.
    """

    takes = ("image",)
    options = LabelOptions
    auto_class = AutoModelForImageClassification
    processor_class = AutoImageProcessor

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._names = label_names(self.model.config)

    def infer(
        self, request: pb.InferRequest, options: LabelOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        inputs = self.processor(images=self.image(request), return_tensors="pt")
        return classified(self._names, self.forward(inputs)[0], self.model.config, options)
