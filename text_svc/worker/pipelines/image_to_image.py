"""Images in a better form: Swin2SR, which enlarges and cleans them."""

from __future__ import annotations

import threading

import numpy as np
from PIL import Image
from transformers import AutoModelForImageToImage

from ml import transformers_pb2 as pb
from shared.errors import InputTooLargeError, InvalidModelError
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.images import ImagePipeline
from text_svc.worker.infer.options import NoOptions
from text_svc.worker.media.decode import encode_png


class ImageToImage(ImagePipeline[NoOptions]):
    """An image to an image, as often as large as the model's config says.

    Raises:
        InvalidModelError: the model makes no colours, or as `ImagePipeline`.
    """

    auto_class = AutoModelForImageToImage

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        channels = self.model.config.num_channels_out
        if channels != 3:
            raise InvalidModelError(
                f"the model makes images of {channels} channels; only those of 3 are served"
            )

    def infer(
        self, request: pb.InferRequest, options: NoOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        image = self.image(request)
        height, width = (side * self.model.config.upscale for side in (image.height, image.width))
        if width * height > self.spec.max_map_pixels:
            raise InputTooLargeError(
                f"the answer would have {width} x {height} pixels; the limit is "
                f"{self.spec.max_map_pixels}",
                metadata={"limit": str(self.spec.max_map_pixels)},
            )
        outputs = self.outputs(self.processor(images=image, return_tensors="pt"), cancelled)
        # The processor has filled the image up to whole windows.
        made = outputs.reconstruction[0, :, :height, :width].clamp(0, 1)
        pixels = (made * 255).round().numpy().astype(np.uint8).transpose(1, 2, 0)
        return pb.InferResponse(image=pb.ImageData(data=encode_png(Image.fromarray(pixels))))
