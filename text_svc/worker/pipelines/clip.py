"""Images and texts in one space: vectors of either, or labels of an image. CLIP and SigLIP."""

from __future__ import annotations

import threading
from typing import Any

import torch
from pydantic import Field
from transformers import AutoModel, AutoProcessor

from ml import transformers_pb2 as pb
from text_svc.processes.launch import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.cancel import in_batches
from text_svc.worker.infer.base import Family, NoOptions
from text_svc.worker.infer.labels import (
    required_labels,
    scored,
    vector,
)
from text_svc.worker.infer.service import load_family
from text_svc.worker.loaded import LoadedPipeline


class ClipOptions(NoOptions):
    """How a label becomes a text."""

    hypothesis_template: str = Field("This is a photo of {}.", max_length=1000)


class Clip(Family[ClipOptions]):
    """A vector of length 1 for an image or a text; scores where labels come with an image."""

    takes = ("image", "text")
    options = ClipOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        self.model = source.model(AutoModel)
        self._processor = source.read(AutoProcessor)
        source.truncate_to_model(self._processor.tokenizer, self.model.config.text_config)
        # SigLIP was trained with texts of full length, and scores each label by itself.
        self._siglip = self.model.config.model_type.startswith("siglip")

    def infer(
        self, request: pb.InferRequest, options: ClipOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        with torch.inference_mode():
            if request.text:
                texts = self.to_model(self._texts([request.text]))
                return pb.InferResponse(vector=vector(self.model.get_text_features(**texts)))
            picture = self._processor(images=self.image(request), return_tensors="pt")
            image = self.to_model(picture)
            if not request.labels:
                return pb.InferResponse(vector=vector(self.model.get_image_features(**image)))
            labels = required_labels(request)
            said = [options.hypothesis_template.replace("{}", one) for one in labels]
            logits = torch.cat(
                [
                    self.model(**self.to_model(self._texts(part)), **image).logits_per_image[0]
                    for part in in_batches(said, cancelled)
                ]
            )
        scores = logits.float().sigmoid() if self._siglip else logits.float().softmax(-1)
        return pb.InferResponse(labels=scored(labels, scores))

    def _texts(self, texts: list[str]) -> Any:
        padding = "max_length" if self._siglip else True
        return self._processor(text=texts, padding=padding, truncation=True, return_tensors="pt")


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    return load_family(launch, Clip)
