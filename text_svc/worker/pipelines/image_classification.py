"""Labels of images, out of those that the model was trained with."""

from __future__ import annotations

import threading
from typing import Any

from transformers import AutoModelForImageClassification

from ml import transformers_pb2 as pb
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.infer.base import InferPipeline
from text_svc.worker.infer.labels import LabelOptions, classified, label_names
from text_svc.worker.media.image_processors import read_image_processor


class ImageClassifier(InferPipeline[LabelOptions]):
    """An image to scores of labels.

    Raises:
        InvalidModelError: the model's config does not name its labels, or transformers has its
            image processor only on torchvision.
    """

    takes = ("image",)
    options = LabelOptions
    auto_class = AutoModelForImageClassification

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._names = label_names(self.model.config)

    def read_processor(self, source: Pretrained) -> Any:
        return read_image_processor(source)

    def infer(
        self, request: pb.InferRequest, options: LabelOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        inputs = self.processor(images=self.image(request), return_tensors="pt")
        return classified(self._names, self.forward(inputs)[0], self.model.config, options)
