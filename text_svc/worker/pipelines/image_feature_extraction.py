"""Images as vectors: ViT, DINO, Swin, ConvNeXt and other models without a head."""

from __future__ import annotations

import threading
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModel

from ml import transformers_pb2 as pb
from shared.errors import InternalError, InvalidArgumentError
from text_svc.torch_models.pretrained import Pretrained, load_model
from text_svc.worker.infer.images import ImagePipeline, refuse_timm
from text_svc.worker.infer.options import NoOptions

# ViTMAE hides most of an image, at random, unless it is told to hide nothing.
_HIDING = "vit_mae"
_POOLER = "pooler."


class FeatureOptions(NoOptions):
    """How one vector is made of those of an image's parts.

    Attributes:
        pooling: "pooler" is the model's own, "first" the vector of its first token, "mean" the mean
            of all, and "none" gives all of them. Absent is the model's own.
        normalize: scales vectors to length 1.
    """

    pooling: Literal["pooler", "first", "mean", "none"] = "pooler"
    normalize: bool = False


class ImageFeatures(ImagePipeline[FeatureOptions]):
    """An image to its vector, or to those of its parts."""

    options = FeatureOptions
    auto_class = AutoModel

    def read_model(self, source: Pretrained) -> Any:
        refuse_timm(source.read(AutoConfig))
        self._has_pooler = True

        def is_used(name: str) -> bool:
            """The weights of a classifier have no pooler; its random numbers are not used."""
            if name.startswith(_POOLER):
                self._has_pooler = False
                return False
            return True

        model = load_model(
            self.auto_class,
            source.folder,
            dtype=source.dtype,
            device=source.device,
            is_used=is_used,
        )
        if model.config.model_type == _HIDING:
            model.config.mask_ratio = 0.0
        return model

    def infer(
        self, request: pb.InferRequest, options: FeatureOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        inputs = self.processor(images=self.image(request), return_tensors="pt")
        outputs = self._features(inputs, cancelled)
        pooled = outputs.get("pooler_output") if self._has_pooler else None
        if options.pooling == "pooler":
            if pooled is None:
                raise InvalidArgumentError(
                    "the model has no vector of the whole image of its own; option pooling must be "
                    "one of first, mean, none",
                    field="options[pooling]",
                )
            return pb.InferResponse(vector=_vectors(pooled.flatten()[None], options)[0])
        states = outputs.last_hidden_state[0]
        if states.dim() == 3:  # of convolutions: channels, height, width
            states = states.flatten(1).T
        if options.pooling == "none":
            return pb.InferResponse(vectors=_vectors(states, options))
        one = states[0] if options.pooling == "first" else states.mean(0)
        return pb.InferResponse(vector=_vectors(one[None], options)[0])

    def _features(self, inputs: Any, cancelled: threading.Event) -> Any:
        if self.model.config.model_type != _HIDING:
            return self.outputs(inputs, cancelled)
        patches = self.model.embeddings.patch_embeddings.num_patches
        order = torch.arange(patches, device=self.model.device)[None] / patches
        return self.outputs(inputs, cancelled, noise=order)


def _vectors(rows: torch.Tensor, options: FeatureOptions) -> list[pb.GeneratedEmbedding]:
    if options.normalize:
        rows = torch.nn.functional.normalize(rows, dim=-1)
    if not rows.isfinite().all():
        raise InternalError("the model's vector has non-finite numbers")
    return [pb.GeneratedEmbedding(values=row) for row in rows.tolist()]
