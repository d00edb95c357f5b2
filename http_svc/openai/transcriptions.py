"""/v1/audio/transcriptions and /v1/audio/translations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from pydantic import Field

from http_svc.answers import Answer, Events, Whole, as_json, event, whole_json
from http_svc.bodies import Body, Items
from http_svc.refusals import refuse
from http_svc.services import Services
from ml import transformers_pb2 as pb

TEXT = "text/plain; charset=utf-8"


class TranscriptionBody(Body):
    """The fields of a form of /v1/audio/transcriptions; a translation has no language."""

    model: str
    language: str | None = Field(None, max_length=40)
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float | None = None
    stream: bool | None = None
    timestamp_granularities: Items[Literal["word", "segment"]] | None = None
    include: Items[str] | None = None


async def transcribe(body: TranscriptionBody, sound: bytes, services: Services) -> Answer:
    """What is said in a sound."""
    return await _answer(body, sound, services, "transcribe")


async def translate(body: TranscriptionBody, sound: bytes, services: Services) -> Answer:
    """What is said in a sound, in English."""
    return await _answer(body, sound, services, "translate")


async def _answer(body: TranscriptionBody, sound: bytes, services: Services, task: str) -> Answer:
    refuse(
        [
            ("prompt", body.prompt, "it is not supported"),
            ("temperature", body.temperature, "it is not supported; 0 is the likeliest text"),
            (
                "timestamp_granularities",
                "word" in (body.timestamp_granularities or ()),
                "only segment is supported",
            ),
            ("include", body.include, "log-probabilities are not supported"),
            (
                "response_format",
                body.stream and body.response_format not in ("json", "text"),
                "a stream has json alone",
            ),
        ]
    )
    options = {"language": body.language or ""}
    if task == "translate":
        options["task"] = task
    options = {name: value for name, value in options.items() if value}
    audio = pb.AudioData(data=sound)
    if body.stream:
        request = pb.TranscribeRequest(model=body.model, audio=audio, options=options)
        return Events(_events(services.transcribe([request])))
    response = await services.infer(pb.InferRequest(model=body.model, audio=audio, options=options))
    if body.response_format == "text":
        return Whole(f"{response.text}\n".encode(), TEXT)
    if body.response_format == "srt":
        return Whole(srt(response.segments).encode(), TEXT)
    if body.response_format == "vtt":
        return Whole(vtt(response.segments).encode(), TEXT)
    if body.response_format == "json":
        return whole_json({"text": response.text})
    return whole_json(_verbose(response, body, task))


async def _events(
    responses: AsyncGenerator[pb.TranscribeResponse, None],
) -> AsyncGenerator[bytes, None]:
    texts: list[str] = []
    async with aclosing(responses):
        async for response in responses:
            for segment in response.segments:
                delta = f" {segment.text}" if texts else segment.text
                texts.append(delta)
                yield event(as_json({"type": "transcript.text.delta", "delta": delta}))
    yield event(as_json({"type": "transcript.text.done", "text": "".join(texts)}))


def _verbose(response: pb.InferResponse, body: TranscriptionBody, task: str) -> dict[str, Any]:
    segments = [
        {
            "id": index,
            "seek": 0,
            "start": segment.start,
            "end": segment.end,
            "text": segment.text,
            "tokens": [],
            "temperature": 0.0,
            "avg_logprob": 0.0,
            "compression_ratio": 0.0,
            "no_speech_prob": 0.0,
        }
        for index, segment in enumerate(response.segments)
    ]
    return {
        "task": task,
        "language": "english" if task == "translate" else body.language or "",
        "duration": max((segment.end for segment in response.segments), default=0.0),
        "text": response.text,
        "segments": segments,
    }


def srt(segments: Sequence[pb.TranscriptSegment]) -> str:
    """Subtitles of SubRip."""
    cues = (
        f"{number}\n{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}\n"
        f"{_cue(segment.text)}\n\n"
        for number, segment in enumerate(segments, 1)
    )
    return "".join(cues)


def vtt(segments: Sequence[pb.TranscriptSegment]) -> str:
    """Subtitles of WebVTT."""
    cues = (
        f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n{_cue(segment.text)}\n\n"
        for segment in segments
    )
    return "WEBVTT\n\n" + "".join(cues)


def _cue(text: str) -> str:
    """A text that does not end its cue, as an empty line and an arrow would."""
    return " ".join(text.split()).replace("-->", "->")


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
