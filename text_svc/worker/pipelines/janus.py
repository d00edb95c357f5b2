"""Janus: an image and a question to an answer, or a text to an image."""

from __future__ import annotations

import threading

import torch
from PIL import Image
from pydantic import Field

from ml import transformers_pb2 as pb
from text_svc.processes.launch import WorkerSpec
from text_svc.torch_models.pretrained import loading_errors
from text_svc.worker.cancel import cancel_processor
from text_svc.worker.infer.base import GenerateOptions
from text_svc.worker.loaded import LoadedPipeline
from text_svc.worker.media.decode import encode_png
from text_svc.worker.pipelines.visual_language import (
    VisualLanguageModel,
    handlers_of,
)


class JanusOptions(GenerateOptions):
    """Images are drawn with the chance of `temperature`; the same seed gives the same image."""

    seed: int = Field(0, ge=0, lt=2**63)


class Janus(VisualLanguageModel):
    """An image is understood, a text is drawn."""

    options = JanusOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        self.takes = ("image", "text")

    def infer(
        self, request: pb.InferRequest, options: GenerateOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        if not request.text:
            return super().infer(request, options, cancelled)
        assert isinstance(options, JanusOptions), "the class of this family's options"
        inputs = self.processor(text=request.text, generation_mode="image", return_tensors="pt")
        torch.manual_seed(options.seed)  # no other work runs in this process
        sampling = {"temperature": options.temperature, "top_p": options.top_p}
        with torch.inference_mode():
            ids = self.model.generate(
                **self.to_model(inputs),
                generation_mode="image",
                do_sample=options.temperature > 0,
                **(sampling if options.temperature else {}),
                logits_processor=cancel_processor(cancelled),
            )
            pixels = self.model.decode_image_tokens(ids)[0]
        return pb.InferResponse(image=pb.ImageData(data=encode_png(self._picture(pixels))))

    def _picture(self, pixels: torch.Tensor) -> Image.Image:
        """A picture of the model's numbers, shape (height, width, 3).

        The processor's own way back fails where it runs on Pillow: it takes the width for channels.
        """
        images = self.processor.image_processor
        mean, deviation = (torch.tensor(values) for values in (images.image_mean, images.image_std))
        colours = (pixels.float().cpu() * deviation + mean) / images.rescale_factor
        return Image.fromarray(colours.clamp(0, 255).to(torch.uint8).numpy())


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    with loading_errors(launch):
        family = Janus(launch)
        return LoadedPipeline(handlers_of(family, launch).table(), family.report())
