"""Captions of images: BLIP, and an image encoder with a text decoder (TrOCR and the like)."""

from __future__ import annotations

import threading

from transformers import AutoModelForImageTextToText, AutoProcessor

from ml import transformers_pb2 as pb
from text_svc.processes.launch import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.infer.base import Family, GenerateOptions
from text_svc.worker.infer.service import load_family
from text_svc.worker.loaded import LoadedPipeline


class Captioner(Family[GenerateOptions]):
    """An image to a text, which goes on from the prompt if there is one."""

    takes = ("image",)
    options = GenerateOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        self.model = source.model(AutoModelForImageTextToText)
        self._processor = source.read(AutoProcessor)

    def infer(
        self, request: pb.InferRequest, options: GenerateOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        prompt = {"text": request.prompt} if request.prompt else {}
        inputs = self._processor(images=self.image(request), **prompt, return_tensors="pt")
        ids = self.generate(inputs, options, cancelled)
        text = self._processor.decode(ids, skip_special_tokens=True)
        return pb.InferResponse(text=text.strip())


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    return load_family(launch, Captioner)
