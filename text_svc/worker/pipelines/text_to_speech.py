"""Text to speech: models that need no second model to make a sound, such as VITS."""

from __future__ import annotations

import threading
from typing import Any

import torch
from pydantic import Field
from transformers import VitsModel

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, OutOfRangeError
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.torch_models.tokenizer import load_tokenizer
from text_svc.worker.infer.base import InferPipeline
from text_svc.worker.infer.options import NoOptions


class SpeechOptions(NoOptions):
    """The voice, for models with several, and the seed of rhythm and tone."""

    speaker: int = Field(0, ge=0)
    seed: int = Field(0, ge=0, lt=2**63)


class Synthesizer(InferPipeline[SpeechOptions]):
    """The same text, speaker and seed give the same sound."""

    takes = ("text",)
    options = SpeechOptions
    auto_class = VitsModel

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        # Some tokenizers make something of nothing: a begin and an end, or a blank.
        self._silence = self.processor("")["input_ids"]

    def read_processor(self, source: Pretrained) -> Any:
        return load_tokenizer(source.folder)

    def infer(
        self, request: pb.InferRequest, options: SpeechOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        inputs = self.processor(request.text, return_tensors="pt")
        if inputs["input_ids"][0].tolist() == self._silence:
            raise InvalidArgumentError("text has nothing that can be spoken", field="text")
        config = self.model.config
        voice = {"speaker_id": options.speaker} if config.num_speakers > 1 else {}
        if options.speaker >= max(config.num_speakers, 1):
            raise OutOfRangeError(
                f"speaker is {options.speaker}; the model has {config.num_speakers}",
                field="options[speaker]",
            )
        torch.manual_seed(options.seed)  # no other work runs in this process
        with torch.inference_mode():
            wave = self.model(**self.to_model(inputs), **voice).waveform[0]
        data = wave.float().cpu().numpy().astype("<f4").tobytes()
        return pb.InferResponse(
            audio=pb.AudioData(data=data, format="pcm_f32le", rate=config.sampling_rate, channels=1)
        )
