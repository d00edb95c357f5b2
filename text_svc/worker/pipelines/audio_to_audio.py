"""Sounds out of sounds: neural codecs, which give a sound back as it is after coding.

Models that turn one voice into another, such as SpeechT5, make a spectrogram; what makes a sound of
it, the vocoder, is a model of its own in another repository, so these are refused.
"""

from __future__ import annotations

import inspect
import threading
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    DacModel,
    EncodecModel,
    MimiModel,
)

from ml import transformers_pb2 as pb
from shared.errors import InternalError, InvalidModelError, UnknownOptionError
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.infer.base import InferPipeline
from text_svc.worker.infer.options import NoOptions

# By the model type.
CODECS: dict[str, Any] = {"encodec": EncodecModel, "dac": DacModel, "mimi": MimiModel}


class CodecOptions(NoOptions):
    """The quality.

    Attributes:
        bandwidth: of EnCodec, in kbit/s; absent is the model's lowest one, as in transformers.
    """

    bandwidth: float | None = None


class SoundCodec(InferPipeline[CodecOptions]):
    """A sound, coded and decoded again: as long as it was, at the model's rate and channels.

    A model of two channels gets the mean of the sound's channels for both.

    Raises:
        InvalidModelError: the model is none of `CODECS`.
    """

    takes = ("audio",)
    options = CodecOptions
    processor_class = AutoFeatureExtractor

    def read_model(self, source: Pretrained) -> Any:
        kind = source.read(AutoConfig).model_type
        if kind not in CODECS:
            more = "; SpeechT5 needs a vocoder of another repository" * (kind == "speecht5")
            raise InvalidModelError(
                f"the kind of the model is {kind}; it must be one of {', '.join(CODECS)}{more}"
            )
        return source.model(CODECS[kind])

    def infer(
        self, request: pb.InferRequest, options: CodecOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        rate: int = self.processor.sampling_rate
        samples = self.whole_sound(request, rate)
        channels: int = self.processor.feature_size
        read = samples if channels == 1 else samples[:, None].repeat(channels, 1)
        inputs = self.processor(read, sampling_rate=rate, return_tensors="pt")
        taken = inspect.signature(self.model.forward).parameters
        inputs = {name: value for name, value in inputs.items() if name in taken}
        with torch.inference_mode():
            output = self.model(**self.to_model(inputs), **self._quality(options))
        wave: torch.Tensor = output.audio_values.float().cpu().reshape(channels, -1)
        if not wave.isfinite().all():
            raise InternalError("the model's sound has samples that are not finite numbers")
        data = wave[:, : len(samples)].T.numpy().astype("<f4").tobytes()
        return pb.InferResponse(
            audio=pb.AudioData(data=data, format="pcm_f32le", rate=rate, channels=channels)
        )

    def _quality(self, options: CodecOptions) -> dict[str, float]:
        if options.bandwidth is None:
            return {}
        known = getattr(self.model.config, "target_bandwidths", ())
        if options.bandwidth not in known:
            names = f"one of {', '.join(map(str, known))}" if known else "left out for this model"
            raise UnknownOptionError(
                f"bandwidth is {options.bandwidth:g}; it must be {names}",
                field="options[bandwidth]",
            )
        return {"bandwidth": options.bandwidth}
