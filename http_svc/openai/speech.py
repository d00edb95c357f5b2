"""/v1/audio/speech."""

from __future__ import annotations

import asyncio
import io
from typing import Literal

import av

from http_svc.answers import Answer, Whole
from http_svc.bodies import Body
from http_svc.refusals import refuse
from http_svc.services import Services
from ml import transformers_pb2 as pb
from shared.errors import InternalError, InvalidArgumentError

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]

# OpenAI's pcm has no header, so its rate is the one that its clients expect.
_PCM_RATE = 24_000
# Container, codec, samples as the codec takes them, rates that it takes (none: any), media type.
_FORMATS: dict[str, tuple[str, str, str, tuple[int, ...], str]] = {
    "mp3": (
        *("mp3", "libmp3lame", "fltp"),
        (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
        "audio/mpeg",
    ),
    "opus": ("ogg", "libopus", "flt", (8000, 12000, 16000, 24000, 48000), "audio/ogg"),
    "aac": (
        *("adts", "aac", "fltp"),
        (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
        "audio/aac",
    ),
    "flac": ("flac", "flac", "s16", (), "audio/flac"),
    "wav": ("wav", "pcm_s16le", "s16", (), "audio/wav"),
    "pcm": ("s16le", "pcm_s16le", "s16", (_PCM_RATE,), "audio/pcm"),
}
# Names of OpenAI's voices, which its clients must send: they are the model's own first voice.
_VOICES = (
    *("", "default", "alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage"),
    *("shimmer", "verse", "marin", "cedar"),
)


class SpeechBody(Body):
    """A request of /v1/audio/speech."""

    model: str
    input: str
    voice: str | dict[str, str] = ""
    response_format: Format = "mp3"
    speed: float | None = None
    instructions: str | None = None
    stream_format: Literal["audio", "sse"] | None = None


async def speak(body: SpeechBody, services: Services) -> Answer:
    """Speaks a text.

    Raises:
        InvalidArgumentError: the voice is neither a number nor one of OpenAI's, or a field asks for
            something that is not supported.
    """
    refuse(
        [
            ("speed", body.speed not in (None, 1), "only 1 is supported"),
            ("instructions", body.instructions, "they are not supported"),
            ("stream_format", body.stream_format == "sse", "only audio is supported"),
        ]
    )
    request = pb.InferRequest(model=body.model, text=body.input)
    if speaker := _speaker(body.voice):
        request.options["speaker"] = speaker
    response = await services.infer(request)
    data = await asyncio.to_thread(encoded, response.audio, body.response_format)
    return Whole(data, _FORMATS[body.response_format][-1])


def _speaker(voice: str | dict[str, str]) -> str:
    name = voice if isinstance(voice, str) else voice.get("id", "")
    if name.isdecimal() and name.isascii():
        return str(int(name[:18]))
    if name.lower() in _VOICES:
        return ""
    raise InvalidArgumentError(
        f"voice is {name[:80]!r}; it must be the number of one of the model's voices, from 0, or "
        "one of OpenAI's names, which all mean the first",
        field="voice",
    )


def encoded(audio: pb.AudioData, name: str) -> bytes:
    """Samples of a model, float32 of one channel, as a sound file.

    Args:
        audio: the samples.
        name: one of `Format`.

    Raises:
        InternalError: the samples are in another format.
    """
    if audio.format != "pcm_f32le" or audio.channels > 1:
        raise InternalError("the model's sound is not float32 of one channel")
    container_name, codec, sample_format, rates, _ = _FORMATS[name]
    rate = audio.rate
    if rates and rate not in rates:
        rate = min((each for each in rates if each > rate), default=rates[-1])
    output = io.BytesIO()
    with av.open(output, "w", format=container_name) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono", format=sample_format)
        assert isinstance(stream, av.AudioStream)
        size = stream.codec_context.frame_size or None
        resampler = av.AudioResampler(sample_format, "mono", rate, size)
        frame = av.AudioFrame(format="flt", layout="mono", samples=len(audio.data) // 4)
        frame.rate = audio.rate
        frame.planes[0].update(audio.data)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            for packet in stream.encode(part):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return output.getvalue()
