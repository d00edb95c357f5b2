"""Janus: an image and a question to an answer, or a text to an image."""

from __future__ import annotations

import threading

import torch
from PIL import Image
from pydantic import Field

from ml import transformers_pb2 as pb
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.cancel import cancel_processor
from text_svc.worker.infer.base import GenerateOptions
from text_svc.worker.media.decode import encode_png
from text_svc.worker.pipelines.visual_language import VisualLanguageModel


class JanusOptions(GenerateOptions):
    """Images are sampled at `temperature`; the same seed gives the same image."""

    seed: int = Field(0, ge=0, lt=2**63)


class Janus(VisualLanguageModel):
    """Answers questions about an image, and draws an image of a text."""

    options = JanusOptions

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self.takes = ("image", "text")

    def infer(
        self, request: pb.InferRequest, options: GenerateOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        if not request.text:
            return super().infer(request, options, cancelled)
        assert isinstance(options, JanusOptions), "the class of this pipeline's options"
        inputs = self.processor(text=request.text, generation_mode="image", return_tensors="pt")
        torch.manual_seed(options.seed)  # no other work runs in this process
        with torch.inference_mode():
            ids = self.model.generate(
                **self.to_model(inputs),
                generation_mode="image",
                logits_processor=cancel_processor(cancelled),
                **options.sampling(),
            )
            pixels = self.model.decode_image_tokens(ids)[0]
        return pb.InferResponse(image=pb.ImageData(data=encode_png(self._image_of(pixels))))

    def _image_of(self, pixels: torch.Tensor) -> Image.Image:
        """The image of the model's output, shape (height, width, 3).

        The processor's own conversion fails on Pillow: it takes the width for the channels.
        """
        images = self.processor.image_processor
        mean, deviation = (torch.tensor(values) for values in (images.image_mean, images.image_std))
        colours = (pixels.float().cpu() * deviation + mean) / images.rescale_factor
        return Image.fromarray(colours.clamp(0, 255).to(torch.uint8).numpy())
