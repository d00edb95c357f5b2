"""Sounds and texts in one space: vectors of either, or labels of a sound. CLAP."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
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


class ClapOptions(NoOptions):
    """How a label becomes a text."""

    hypothesis_template: str = Field("This is a sound of {}.", max_length=1000)


class Clap(Family[ClapOptions]):
    """A vector of length 1 for a sound or a text; scores where labels come with a sound."""

    takes = ("audio", "text")
    options = ClapOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        self.model = source.model(AutoModel)
        self._processor = source.read(AutoProcessor)
        source.truncate_to_model(self._processor.tokenizer, self.model.config.text_config)
        self._rate: int = self._processor.feature_extractor.sampling_rate

    def infer(
        self, request: pb.InferRequest, options: ClapOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        with torch.inference_mode():
            if request.text:
                texts = self.to_model(self._texts([request.text]))
                return pb.InferResponse(vector=vector(self.model.get_text_features(**texts)))
            sound = self.to_model(self._sound(request))
            if not request.labels:
                features = self.model.get_audio_features(**sound)
                return pb.InferResponse(vector=vector(features))
            labels = required_labels(request)
            said = [options.hypothesis_template.replace("{}", one) for one in labels]
            logits = torch.cat(
                [
                    self.model(**self.to_model(self._texts(part)), **sound).logits_per_audio[0]
                    for part in in_batches(said, cancelled)
                ]
            )
        return pb.InferResponse(labels=scored(labels, logits.float().softmax(-1)))

    def _texts(self, texts: list[str]) -> Any:
        return self._processor(text=texts, padding=True, truncation=True, return_tensors="pt")

    def _sound(self, request: pb.InferRequest) -> Any:
        samples = self.audio(request, self._rate)
        # Of a long sound the processor takes a part by chance: the same one each time.
        np.random.seed(0)
        return self._processor(audio=samples, sampling_rate=self._rate, return_tensors="pt")


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    return load_family(launch, Clap)
