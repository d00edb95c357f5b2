"""Captions of images: BLIP, and image encoders with a text decoder (TrOCR and the like)."""

from __future__ import annotations

import threading

from transformers import AutoModelForImageTextToText

from ml import transformers_pb2 as pb
from text_svc.worker.infer.base import GenerateOptions, InferPipeline


class Captioner(InferPipeline[GenerateOptions]):
    """An image to a text, which continues the prompt if there is one."""

    takes = ("image",)
    options = GenerateOptions
    auto_class = AutoModelForImageTextToText

    def infer(
        self, request: pb.InferRequest, options: GenerateOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        prompt = {"text": request.prompt} if request.prompt else {}
        inputs = self.processor(images=self.image(request), **prompt, return_tensors="pt")
        ids = self.generate(inputs, options, cancelled)
        text = self.processor.decode(ids, skip_special_tokens=True)
        return pb.InferResponse(text=text.strip())
