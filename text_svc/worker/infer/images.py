"""The base of pipelines that answer about one image with more than labels."""

from __future__ import annotations

import threading
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig

from ml import transformers_pb2 as pb
from shared.errors import InternalError, InvalidModelError
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.cancel import raise_if_cancelled
from text_svc.worker.infer.base import InferPipeline, Options
from text_svc.worker.media.decode import decode_image
from text_svc.worker.media.image_processors import read_image_processor

_TIMM = "timm_backbone"


class ImagePipeline(InferPipeline[Options]):
    """A model of images. Its work for a caller who has gone ends within a layer.

    Raises:
        InvalidModelError: the model has parts of timm, or a processor that needs torchvision.
    """

    takes = ("image",)

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._cancelled = threading.Event()
        for module in self.model.modules():
            if isinstance(module, torch.nn.ModuleList):
                for layer in module:
                    layer.register_forward_pre_hook(self._before_layer)

    def read_model(self, source: Pretrained) -> Any:
        refuse_timm(source.read(AutoConfig))
        return super().read_model(source)

    def read_processor(self, source: Pretrained) -> Any:
        return read_image_processor(source)

    def mapped_image(self, request: pb.InferRequest) -> Image.Image:
        """The request's image, decoded, for an answer that has its size."""
        limit = min(self.spec.max_image_pixels, self.spec.max_map_pixels)
        return decode_image(request.image.data, limit)

    def outputs(self, inputs: Any, cancelled: threading.Event, **more: Any) -> Any:
        """What the model makes of a batch: its tensors as float32 on the CPU.

        Args:
            inputs: of the processor.
            cancelled: set when the caller has gone.
            more: arguments of the model that are passed on as they are.

        Raises:
            CallCancelledError: the caller has gone.
            InternalError: the outputs have numbers that are none.
        """
        self._cancelled = cancelled
        with torch.inference_mode():
            outputs = self.model(**self.to_model(inputs), **more)
        for name, value in outputs.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                outputs[name] = value.float().cpu()
                if outputs[name].isnan().any():
                    raise InternalError(f"the model's {name} has values that are not numbers")
        return outputs

    def _before_layer(self, *_: Any) -> None:
        raise_if_cancelled(self._cancelled)


def refuse_timm(config: Any) -> None:
    """Refuses a model whose backbone is of timm, which is not installed.

    Raises:
        InvalidModelError: with a way out.
    """
    backbone = getattr(config, "backbone_config", None)
    if getattr(backbone, "model_type", None) == _TIMM:
        raise InvalidModelError(
            f"its backbone {str(getattr(backbone, 'backbone', ''))[:80]!r} is a model of timm, "
            "which is not used here; a copy whose config.json has use_timm_backbone false loads, "
            "such as the revision no_timm of DETR's own repositories"
        )
