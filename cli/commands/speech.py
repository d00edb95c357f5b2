"""`ml transcribe`: speech as text, of a file or while it is spoken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.inputs import STDIN, assignments, read_bytes, stdin_pieces
from cli.names import chosen_model
from cli.options import INT32, Model
from cli.registry import command
from cli.requests import stream
from cli.session import Session

if TYPE_CHECKING:
    from ml.transformers_pb2 import TranscribeRequest, TranscriptSegment

# A tenth of a second at 16 kHz.
_PIECE_BYTES = 3200


class Form(StrEnum):
    """How a transcript is printed."""

    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "transcribe")(transcribe)


def transcribe(
    session: Session,
    sound: Annotated[str, typer.Argument(help='A file with speech; "-" is stdin.')],
    model: Model = "",
    form: Annotated[Form, typer.Option("--format", "-f", help="Of the transcript.")] = Form.TEXT,
    rate: Annotated[
        int | None,
        typer.Option(
            min=1000,
            max=INT32,
            help="The sound is raw samples, 16 bits, one channel, so many a second; segments are "
            "printed while it is spoken.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", metavar="NAME=VALUE", help="Of the pipeline; repeatable."),
    ] = None,
) -> None:
    """Write down what is said in a file, or what comes from a microphone.

    arecord -q -f S16_LE -r 16000 -c 1 | ml transcribe --rate 16000 -
    """
    from ml import transformers_pb2 as pb
    from ml import transformers_pb2_grpc

    options = assignments(option)
    data = b"" if rate else read_bytes(sound)
    with session.channel() as channel:
        stub = transformers_pb2_grpc.TransformersServiceStub(channel)
        name = chosen_model(session, channel, model, "automatic-speech-recognition")
        if rate:
            requests = _pieces(sound, rate, name, options)
            with stream(stub.TranscribeStream, requests, session.call) as answers:
                _show((each for answer in answers for each in answer.segments), form, session.json)
            return
        audio = pb.AudioData(data=data)
        request = pb.InferRequest(model=name, audio=audio, options=options)
        answer = stub.Infer(request, **session.call)
    if form is Form.TEXT and not session.json:
        output.line(answer.text.strip())
    else:
        _show(answer.segments, form, session.json)


def _pieces(
    sound: str, rate: int, model: str, options: dict[str, str]
) -> Iterator[TranscribeRequest]:
    """Samples as they come."""
    from ml import transformers_pb2 as pb

    yield pb.TranscribeRequest(model=model, options=options)
    rest = b""
    for piece in stdin_pieces(_PIECE_BYTES) if sound == STDIN else _file_pieces(sound):
        data = rest + piece
        whole = len(data) // 2 * 2
        rest = data[whole:]
        if whole:
            audio = pb.AudioData(data=data[:whole], format="pcm_s16le", rate=rate, channels=1)
            yield pb.TranscribeRequest(audio=audio)


def _file_pieces(path: str) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _show(segments: Iterable[TranscriptSegment], form: Form, json: bool) -> None:
    if form is Form.VTT and not json:
        output.line("WEBVTT\n")
    for number, segment in enumerate(segments, 1):
        text = segment.text.strip()
        if json:
            output.json_line({**output.plain(segment), "text": text})
        elif form is Form.TEXT:
            output.line(text)
        else:
            mark = "," if form is Form.SRT else "."
            times = f"{clock(segment.start, mark)} --> {clock(segment.end, mark)}"
            output.line(
                f"{number}\n{times}\n{text}\n" if form is Form.SRT else f"{times}\n{text}\n"
            )


def clock(seconds: float, mark: str) -> str:
    """A time as subtitles have it: hours, minutes, seconds, `mark`, milliseconds."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(whole, 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02}:{minute:02}:{second:02}{mark}{milliseconds:03}"
