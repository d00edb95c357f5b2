"""Labels of images, out of those that the model was trained with."""

from __future__ import annotations

import threading

from transformers import AutoModelForImageClassification

# transformers' public name for it requires torchvision, which processors on Pillow do without.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ml import transformers_pb2 as pb
from text_svc.worker.infer.base import InferPipeline, LabelOptions
from text_svc.worker.infer.labels import classified


class ImageClassifier(InferPipeline[LabelOptions]):
    """An image to scores of labels."""

    takes = ("image",)
    options = LabelOptions
    auto_class = AutoModelForImageClassification
    processor_class = AutoImageProcessor

    def infer(
        self, request: pb.InferRequest, options: LabelOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        inputs = self.processor(images=self.image(request), return_tensors="pt")
        return classified(self.forward(inputs)[0], self.model.config, options.top_k)
