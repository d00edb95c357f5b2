"""Speech to text: Whisper with times, Moonshine and CTC models without."""

from __future__ import annotations

import threading
from typing import Any, Literal

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.processes.launch import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained, loading_errors
from text_svc.worker.cancel import cancel_processor, raise_if_cancelled
from text_svc.worker.infer.base import Family, NoOptions
from text_svc.worker.loaded import LoadedPipeline
from text_svc.worker.media.decode import Samples
from text_svc.worker.media.speech_cutter import SpeechCutter
from text_svc.worker.pipelines.speech_service import (
    SpeechHandlers,
    shifted,
)

# Moonshine's authors: more tokens a second than this are hallucinated.
_MOONSHINE_TOKENS_A_SECOND = 6.5
# What Whisper hears at once; the others can do with as much.
_WINDOW_SECONDS = 30.0


class SpeechOptions(NoOptions):
    """`language` and `task` are for Whisper models of many languages."""

    language: str = Field("", max_length=40)
    task: Literal["", "transcribe", "translate"] = ""
    num_beams: int = Field(1, ge=1, le=16)


class SpeechRecognizer(Family[SpeechOptions]):
    """Sounds of any length: Whisper works through 30 s after 30 s, the others through pieces."""

    takes = ("audio",)
    options = SpeechOptions
    window_seconds = _WINDOW_SECONDS

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        kind = source.read(AutoConfig).model_type
        ctc = kind in MODEL_FOR_CTC_MAPPING_NAMES
        self.model = source.model(AutoModelForCTC if ctc else AutoModelForSpeechSeq2Seq)
        self._processor = source.read(AutoProcessor)
        self.rate: int = self._processor.feature_extractor.sampling_rate
        # Whisper writes the spaces between its segments itself.
        self._run, self._between = self._whisper, ""
        if kind != "whisper":
            self._run, self._between = self._ctc if ctc else self._seq2seq, " "

    def infer(
        self, request: pb.InferRequest, options: SpeechOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        segments = self._segments(self.audio(request, self.rate), options, cancelled)
        text = self._between.join(segment.text for segment in segments).strip()
        return pb.InferResponse(text=text, segments=_stripped(segments))

    def transcribe(
        self, samples: Samples, options: SpeechOptions, cancelled: threading.Event
    ) -> list[pb.TranscriptSegment]:
        """The segments of a sound, shape (samples,), at `rate`. Raises what `infer` does."""
        return _stripped(self._segments(samples, options, cancelled))

    def _segments(
        self, samples: Samples, options: SpeechOptions, cancelled: threading.Event
    ) -> list[pb.TranscriptSegment]:
        longest = int(self.window_seconds * self.rate)
        with torch.inference_mode():
            if len(samples) <= longest or self._run == self._whisper:
                return self._run(samples, options, cancelled)
            cutter = SpeechCutter(self.rate, self.window_seconds)
            segments = []
            for piece in filter(None, (*cutter.add(samples), cutter.rest())):
                raise_if_cancelled(cancelled)
                segments += shifted(self._run(piece.samples, options, cancelled), piece.start)
        return segments

    def _whisper(
        self, samples: Samples, options: SpeechOptions, cancelled: threading.Event
    ) -> list[pb.TranscriptSegment]:
        seconds = len(samples) / self.rate
        long = len(samples) > self._processor.feature_extractor.n_samples
        inputs = self._processor(
            samples,
            sampling_rate=self.rate,
            return_tensors="pt",
            return_attention_mask=True,
            **({"truncation": False, "padding": "longest"} if long else {}),
        )
        wanted = {"language": options.language, "task": options.task}
        try:
            answer = self.model.generate(
                **self.to_model(inputs),
                return_timestamps=True,
                return_segments=True,
                num_beams=options.num_beams,
                logits_processor=cancel_processor(cancelled),
                **{name: value for name, value in wanted.items() if value},
            )
        except ValueError as error:  # such as a language that the model does not know
            raise InvalidArgumentError(str(error)[:300], field="options") from None
        decode = self._processor.tokenizer.decode
        return [
            pb.TranscriptSegment(
                text=decode(segment["tokens"], skip_special_tokens=True),
                start=min(float(segment["start"]), seconds),
                end=min(float(segment["end"]), seconds),
            )
            for segment in answer["segments"][0]
        ]

    def _seq2seq(
        self, samples: Samples, options: SpeechOptions, cancelled: threading.Event
    ) -> list[pb.TranscriptSegment]:
        seconds = len(samples) / self.rate
        ids = self.model.generate(
            **self._inputs(samples),
            max_new_tokens=max(int(seconds * _MOONSHINE_TOKENS_A_SECOND), 1),
            num_beams=options.num_beams,
            logits_processor=cancel_processor(cancelled),
        )
        return self._whole(ids[0], seconds)

    def _ctc(
        self, samples: Samples, options: SpeechOptions, cancelled: threading.Event
    ) -> list[pb.TranscriptSegment]:
        logits = self.model(**self._inputs(samples)).logits
        return self._whole(logits[0].argmax(-1), len(samples) / self.rate)

    def _inputs(self, samples: Samples) -> dict[str, Any]:
        return self.to_model(self._processor(samples, sampling_rate=self.rate, return_tensors="pt"))

    def _whole(self, ids: torch.Tensor, seconds: float) -> list[pb.TranscriptSegment]:
        text = self._processor.tokenizer.decode(ids, skip_special_tokens=True)
        return [pb.TranscriptSegment(text=text, end=seconds)]


def _stripped(segments: list[pb.TranscriptSegment]) -> list[pb.TranscriptSegment]:
    for segment in segments:
        segment.text = segment.text.strip()
    return segments


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    with loading_errors(launch):
        family = SpeechRecognizer(launch)
        return LoadedPipeline(SpeechHandlers(family, launch).table(), family.report())
