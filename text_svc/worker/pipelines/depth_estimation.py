"""How far the pixels of an image are: DPT, Depth Anything, ZoeDepth, GLPN, Depth Pro."""

from __future__ import annotations

import io
import threading
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForDepthEstimation

from ml import transformers_pb2 as pb
from shared.errors import InternalError
from text_svc.worker.infer.images import ImagePipeline
from text_svc.worker.infer.options import NoOptions
from text_svc.worker.media.image_processors import TorchImages

# What Depth Pro's inverse depth is cut to before it is turned around.
_MIN_INVERSE, _MAX_INVERSE = 1e-4, 1e4


class DepthOptions(NoOptions):
    """How depth is written; see `DepthMap`."""

    depth_format: Literal["png", "float32"] = "png"


class DepthEstimator(ImagePipeline[DepthOptions]):
    """An image to the depth of each of its pixels."""

    options = DepthOptions
    auto_class = AutoModelForDepthEstimation

    def infer(
        self, request: pb.InferRequest, options: DepthOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        image = self.mapped_image(request)
        size = (image.height, image.width)
        outputs = self.outputs(self.processor(images=image, return_tensors="pt"), cancelled)
        if isinstance(self.processor, TorchImages):
            depth = depth_pro(outputs, size)
        else:
            (found,) = self.processor.post_process_depth_estimation(outputs, [size])
            depth = found["predicted_depth"]
        if not depth.isfinite().all():
            raise InternalError("the model's depth has values that are not finite numbers")
        low, high = float(depth.min()), float(depth.max())
        answer = pb.DepthMap(width=image.width, height=image.height, minimum=low, maximum=high)
        if options.depth_format == "float32":
            answer.values = depth.numpy().astype("<f4").tobytes()
        else:
            answer.png = _png(depth, low, high)
        return pb.InferResponse(depth=answer)


def depth_pro(outputs: Any, size: tuple[int, int]) -> torch.Tensor:
    """Depth Pro's metres, shape (height, width), as transformers' processor makes them.

    Args:
        outputs: of the model, for one image.
        size: of the image, height and width.
    """
    inverse = outputs.predicted_depth[0]
    if outputs.field_of_view is not None:
        half = 0.5 * torch.deg2rad(outputs.field_of_view[0])
        focal_length = 0.5 * size[1] / torch.tan(half)
        inverse = inverse * size[1] / focal_length
    resized = torch.nn.functional.interpolate(inverse[None, None], size, mode="bilinear")[0, 0]
    return 1 / resized.clamp(_MIN_INVERSE, _MAX_INVERSE)


def _png(depth: torch.Tensor, low: float, high: float) -> bytes:
    parts = (depth.double() - low) / ((high - low) or 1.0)
    file = io.BytesIO()
    pixels = (parts * 65535).round().numpy().astype(np.uint16)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
