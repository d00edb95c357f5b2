"""Infer and TranscribeStream of one model of speech."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

from ml import transformers_pb2 as pb
from shared.errors import MissingFieldError
from text_svc.link.server import Handlers
from text_svc.options import parse_as
from text_svc.processes.launch import WorkerSpec
from text_svc.worker.infer.service import InferHandlers
from text_svc.worker.media.decode import SoundReader
from text_svc.worker.media.speech_cutter import (
    Piece,
    SpeechCutter,
)

if TYPE_CHECKING:
    from text_svc.worker.pipelines.speech_recognition import (
        SpeechOptions,
        SpeechRecognizer,
    )


class SpeechHandlers(InferHandlers):
    """A sound that comes in pieces is worked on as it comes; the caller waits while it is."""

    def __init__(self, family: SpeechRecognizer, launch: WorkerSpec) -> None:
        super().__init__(family, launch)
        self._speech = family

    def table(self) -> Handlers:
        return {**super().table(), "TranscribeStream": self.transcribe_stream}

    async def transcribe_stream(
        self, requests: AsyncIterator[pb.TranscribeRequest]
    ) -> AsyncGenerator[pb.TranscribeResponse, None]:
        """Segments of a sound as it arrives; the last response tells its length."""
        first = await anext(requests)
        options = parse_as(self._speech.options, first.options)
        cutter = SpeechCutter(self._speech.rate, self._speech.window_seconds)
        async for piece in self._pieces(cutter, first, requests):
            segments = await self._transcribed(piece, options)
            yield pb.TranscribeResponse(segments=segments, seconds=cutter.end_of(piece))
        yield pb.TranscribeResponse(seconds=cutter.seconds)

    async def _pieces(
        self,
        cutter: SpeechCutter,
        first: pb.TranscribeRequest,
        rest: AsyncIterator[pb.TranscribeRequest],
    ) -> AsyncIterator[Piece]:
        reader, limit, heard = SoundReader(self._speech.rate), self._launch.max_audio_seconds, False

        def read(audio: pb.AudioData) -> list[Piece]:
            return list(cutter.add(reader.add(audio, limit)))

        request: pb.TranscribeRequest | None = first
        while request is not None:
            if request.HasField("audio"):
                heard = True
                for piece in await asyncio.to_thread(read, request.audio):
                    yield piece
            request = await anext(aiter(rest), None)
        if not heard:
            raise MissingFieldError("no request has audio", field="audio")
        for piece in cutter.add(reader.rest()):
            yield piece
        if last := cutter.rest():
            yield last

    async def _transcribed(
        self, piece: Piece, options: SpeechOptions
    ) -> list[pb.TranscriptSegment]:
        segments = await self._thread.run(
            lambda cancelled: self._speech.transcribe(piece.samples, options, cancelled)
        )
        return [segment for segment in shifted(segments, piece.start) if segment.text]


def shifted(segments: list[pb.TranscriptSegment], seconds: float) -> list[pb.TranscriptSegment]:
    """Segments of a piece as those of the sound in which it starts after so many seconds."""
    for segment in segments:
        segment.start += seconds
        segment.end += seconds
    return segments
