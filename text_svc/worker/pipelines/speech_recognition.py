"""Speech to text: Whisper with times, Moonshine and CTC models without."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Literal

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModelForCTC, AutoModelForSpeechSeq2Seq
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, MissingFieldError
from text_svc.link.server import Handlers
from text_svc.options import parse_as
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.cancel import cancel_processor, raise_if_cancelled
from text_svc.worker.infer.base import InferPipeline
from text_svc.worker.infer.options import NoOptions
from text_svc.worker.infer.service import InferHandlers
from text_svc.worker.media.decode import Samples, SoundReader
from text_svc.worker.media.speech_cutter import Piece, SpeechCutter

# According to Moonshine's authors, more tokens a second than this are hallucinated.
MAX_MOONSHINE_TOKENS_PER_SECOND = 6.5
# What Whisper reads at once; it is enough for the other models too.
_MAX_PIECE_SECONDS = 30.0


class SpeechOptions(NoOptions):
    """`language` and `task` are for multilingual Whisper models."""

    language: str = Field("", max_length=40)
    task: Literal["", "transcribe", "translate"] = ""
    num_beams: int = Field(1, ge=1, le=16)


class SpeechRecognizer(InferPipeline[SpeechOptions]):
    """Sounds of any length: Whisper reads 30 s after 30 s, the other models read pieces.

    Attributes:
        rate: samples a second that the model takes.
    """

    takes = ("audio",)
    options = SpeechOptions
    max_piece_seconds = _MAX_PIECE_SECONDS

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self.rate: int = self.processor.feature_extractor.sampling_rate
        model_type = self.model.config.model_type
        # Whisper writes the spaces between its segments itself.
        self._run, self._separator = self._whisper, ""
        if model_type in MODEL_FOR_CTC_MAPPING_NAMES:
            self._run, self._separator = self._ctc, " "
        elif model_type != "whisper":
            self._run, self._separator = self._seq2seq, " "

    def read_model(self, source: Pretrained) -> Any:
        ctc = source.read(AutoConfig).model_type in MODEL_FOR_CTC_MAPPING_NAMES
        return source.model(AutoModelForCTC if ctc else AutoModelForSpeechSeq2Seq)

    def handlers(self) -> Handlers:
        return SpeechHandlers(self, self.spec).table()

    def infer(
        self, request: pb.InferRequest, options: SpeechOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        segments = self._segments(self.audio(request, self.rate), options, cancelled)
        text = self._separator.join(segment.text for segment in segments).strip()
        return pb.InferResponse(text=text, segments=_stripped(segments))

    def transcribe(
        self, samples: Samples, options: SpeechOptions, cancelled: threading.Event
    ) -> list[pb.TranscriptSegment]:
        """The segments of a sound at `rate`, shape (samples,). Raises what `infer` does."""
        return _stripped(self._segments(samples, options, cancelled))

    def _segments(
        self, samples: Samples, options: SpeechOptions, cancelled: threading.Event
    ) -> list[pb.TranscriptSegment]:
        max_samples = int(self.max_piece_seconds * self.rate)
        with torch.inference_mode():
            if len(samples) <= max_samples or self._run == self._whisper:
                return self._run(samples, options, cancelled)
            cutter = SpeechCutter(self.rate, self.max_piece_seconds)
            segments = []
            for piece in filter(None, (*cutter.add(samples), cutter.rest())):
                raise_if_cancelled(cancelled)
                segments += piece.shift(self._run(piece.samples, options, cancelled))
        return segments

    def _whisper(
        self, samples: Samples, options: SpeechOptions, cancelled: threading.Event
    ) -> list[pb.TranscriptSegment]:
        seconds = len(samples) / self.rate
        long = len(samples) > self.processor.feature_extractor.n_samples
        inputs = self.processor(
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
        except ValueError as error:  # such as a language that the model does not have
            raise InvalidArgumentError(str(error)[:300], field="options") from None
        decode = self.processor.tokenizer.decode
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
        limit = {}
        if self.model.config.model_type.startswith("moonshine"):
            tokens = max(int(seconds * MAX_MOONSHINE_TOKENS_PER_SECOND), 1)
            limit = {"max_new_tokens": tokens}
        ids = self.model.generate(
            **self._inputs(samples),
            **limit,
            num_beams=options.num_beams,
            logits_processor=cancel_processor(cancelled),
        )
        return self._one_segment(ids[0], seconds)

    def _ctc(
        self, samples: Samples, options: SpeechOptions, cancelled: threading.Event
    ) -> list[pb.TranscriptSegment]:
        logits = self.model(**self._inputs(samples)).logits
        return self._one_segment(logits[0].argmax(-1), len(samples) / self.rate)

    def _inputs(self, samples: Samples) -> dict[str, Any]:
        return self.to_model(self.processor(samples, sampling_rate=self.rate, return_tensors="pt"))

    def _one_segment(self, ids: torch.Tensor, seconds: float) -> list[pb.TranscriptSegment]:
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return [pb.TranscriptSegment(text=text, end=seconds)]


class SpeechHandlers(InferHandlers):
    """Infer, and TranscribeStream, which transcribes a sound as it arrives.

    The next piece of the sound is read when the last one is transcribed: a caller who is faster
    than the model waits.
    """

    def __init__(self, pipeline: SpeechRecognizer, spec: WorkerSpec) -> None:
        super().__init__(pipeline, spec)
        self._recognizer = pipeline

    def table(self) -> Handlers:
        return {**super().table(), "TranscribeStream": self.transcribe_stream}

    async def transcribe_stream(
        self, requests: AsyncIterator[pb.TranscribeRequest]
    ) -> AsyncGenerator[pb.TranscribeResponse, None]:
        """Segments of a sound as it arrives; the last response has its length."""
        first = await anext(requests)
        options = parse_as(SpeechOptions, first.options)
        cutter = SpeechCutter(self._recognizer.rate, self._recognizer.max_piece_seconds)
        async for piece in self._pieces(cutter, first, requests):
            segments = await self._transcribe(piece, options)
            yield pb.TranscribeResponse(segments=segments, seconds=cutter.end_of(piece))
        yield pb.TranscribeResponse(seconds=cutter.seconds)

    async def _pieces(
        self,
        cutter: SpeechCutter,
        first: pb.TranscribeRequest,
        rest: AsyncIterator[pb.TranscribeRequest],
    ) -> AsyncIterator[Piece]:
        reader, limit = SoundReader(self._recognizer.rate), self.spec.max_audio_seconds
        has_audio = False

        def read(audio: pb.AudioData) -> list[Piece]:
            return list(cutter.add(reader.add(audio, limit)))

        request: pb.TranscribeRequest | None = first
        while request is not None:
            if request.HasField("audio"):
                has_audio = True
                for piece in await asyncio.to_thread(read, request.audio):
                    yield piece
            request = await anext(aiter(rest), None)
        if not has_audio:
            raise MissingFieldError("no request has audio", field="audio")
        for piece in cutter.add(reader.rest()):
            yield piece
        if last := cutter.rest():
            yield last

    async def _transcribe(self, piece: Piece, options: SpeechOptions) -> list[pb.TranscriptSegment]:
        segments = await self.thread.run(
            lambda cancelled: self._recognizer.transcribe(piece.samples, options, cancelled)
        )
        return [segment for segment in piece.shift(segments) if segment.text]


def _stripped(segments: list[pb.TranscriptSegment]) -> list[pb.TranscriptSegment]:
    for segment in segments:
        segment.text = segment.text.strip()
    return segments
