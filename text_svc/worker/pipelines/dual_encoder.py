"""Images or sounds, and texts, as vectors in one space: CLIP, SigLIP and CLAP."""

from __future__ import annotations

import abc
import threading
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from transformers import AutoModel

from ml import transformers_pb2 as pb
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.cancel import in_batches
from text_svc.worker.infer.base import InferPipeline
from text_svc.worker.infer.labels import required_labels, scored, vector
from text_svc.worker.infer.options import NoOptions


class HypothesisOptions(NoOptions):
    """How a label becomes a text."""

    hypothesis_template: str = Field("{}", max_length=1000)


class ClipOptions(HypothesisOptions):
    """See `HypothesisOptions`."""

    hypothesis_template: str = Field("This is a photo of {}.", max_length=1000)


class ClapOptions(HypothesisOptions):
    """See `HypothesisOptions`."""

    hypothesis_template: str = Field("This is a sound of {}.", max_length=1000)


class DualEncoder(InferPipeline[HypothesisOptions]):
    """A vector of length 1 for a text, image or sound; scores where labels come with the latter.

    Attributes:
        media: what the model takes beside texts, as transformers calls it: "image" or "audio".
    """

    media: ClassVar[str]
    auto_class = AutoModel

    def read_processor(self, source: Pretrained) -> Any:
        processor = super().read_processor(source)
        source.truncate_to_model(processor.tokenizer, self.model)
        return processor

    def infer(
        self, request: pb.InferRequest, options: HypothesisOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        with torch.inference_mode():
            if request.text:
                texts = self._texts([request.text])
                return pb.InferResponse(vector=vector(self.model.get_text_features(**texts)))
            media = self.to_model(self.encode_media(request))
            if not request.labels:
                get_features = getattr(self.model, f"get_{self.media}_features")
                return pb.InferResponse(vector=vector(get_features(**media)))
            labels = required_labels(request)
            hypotheses = [options.hypothesis_template.replace("{}", label) for label in labels]
            logits = torch.cat(
                [
                    self.model(**self._texts(batch), **media)[f"logits_per_{self.media}"][0]
                    for batch in in_batches(hypotheses, cancelled)
                ]
            )
        logits = logits.float()
        return pb.InferResponse(labels=scored(labels, logits, self.scores(logits)))

    @abc.abstractmethod
    def encode_media(self, request: pb.InferRequest) -> Any:
        """The processor's tensors of the request's image or sound."""

    def padding(self) -> str | bool:
        """How the processor pads texts."""
        return True

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores of the labels' logits, shape (labels,)."""
        return logits.softmax(-1)

    def _texts(self, texts: list[str]) -> dict[str, Any]:
        inputs = self.processor(
            text=texts, padding=self.padding(), truncation=True, return_tensors="pt"
        )
        return self.to_model(inputs)


class Clip(DualEncoder):
    """CLIP, and SigLIP, trained with padded texts and with a score for each label by itself."""

    takes = ("image", "text")
    options = ClipOptions
    media = "image"

    @property
    def _is_siglip(self) -> bool:
        return bool(self.model.config.model_type.startswith("siglip"))

    def encode_media(self, request: pb.InferRequest) -> Any:
        return self.processor(images=self.image(request), return_tensors="pt")

    def padding(self) -> str | bool:
        return "max_length" if self._is_siglip else True

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if self._is_siglip else super().scores(logits)


class Clap(DualEncoder):
    """CLAP."""

    takes = ("audio", "text")
    options = ClapOptions
    media = "audio"

    def encode_media(self, request: pb.InferRequest) -> Any:
        rate: int = self.processor.feature_extractor.sampling_rate
        samples = self.audio(request, rate)
        # The processor takes a random part of a long sound: the same one each time.
        np.random.seed(0)
        return self.processor(audio=samples, sampling_rate=rate, return_tensors="pt")
