"""Images under the labels that the model was trained for."""

from __future__ import annotations

import threading

import torch
from transformers import AutoModelForImageClassification

# The package's own name for it demands torchvision, which processors on Pillow do without.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

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


class ImageClassifier(Family[LabelOptions]):
    """Softmax over the labels, or a sigmoid each where several can hold at once."""

    takes = ("image",)
    options = LabelOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        self.model = source.model(AutoModelForImageClassification)
        self._processor = source.read(AutoImageProcessor)

    def infer(
        self, request: pb.InferRequest, options: LabelOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        inputs = self._processor(images=self.image(request), return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(**self.to_model(inputs)).logits[0]
        config = self.model.config
        scores = probabilities(logits, config)
        return pb.InferResponse(labels=scored(class_names(config), scores, options.top_k))


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    return load_family(launch, ImageClassifier)
