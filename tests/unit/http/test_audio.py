"""/v1/audio/transcriptions, /v1/audio/translations and /v1/audio/speech."""

from __future__ import annotations

import io
import json
import math
import struct

import av
import pytest

from ml import transformers_pb2 as pb
from tests.unit.http.conftest import Door

TRANSCRIPTIONS = "/v1/audio/transcriptions"
SEGMENTS = [
    pb.TranscriptSegment(text="Hello.", start=0.0, end=1.5),
    pb.TranscriptSegment(text="A --> b\n\nc", start=3661.25, end=3662.0),
]


@pytest.fixture(autouse=True)
def script(door: Door) -> None:
    door.script.inferred = pb.InferResponse(text="Hello. A b", segments=SEGMENTS)
    door.script.segments = SEGMENTS


async def transcribed(door: Door, path: str = TRANSCRIPTIONS, **fields: object):
    data = {"model": "m", **fields}
    return await door.client.post(path, data=data, files={"file": ("a.wav", b"a sound")})


async def test_a_sound_reaches_the_model(door: Door) -> None:
    answer = await transcribed(door, language="de", temperature="0", unknown="x")
    assert answer.json() == {"text": "Hello. A b"}
    answer = await transcribed(door, "/v1/audio/translations")
    assert answer.json() == {"text": "Hello. A b"}
    sound = pb.AudioData(data=b"a sound")
    assert door.script.requests == [
        pb.InferRequest(model="m", audio=sound, options={"language": "de"}),
        pb.InferRequest(model="m", audio=sound, options={"task": "translate"}),
    ]


async def test_a_large_sound_is_read_beside_the_event_loop(door: Door) -> None:
    sound = bytes(range(256)) * 4096
    files = {"file": ("a.wav", sound)}
    answer = await door.client.post(TRANSCRIPTIONS, data={"model": "m"}, files=files)
    assert answer.status_code == 200
    assert door.script.requests[0].audio.data == sound


async def test_the_forms_of_a_transcript(door: Door) -> None:
    verbose = (
        await transcribed(
            door, response_format="verbose_json", **{"timestamp_granularities[]": ["segment"]}
        )
    ).json()
    assert (verbose["task"], verbose["text"]) == ("transcribe", "Hello. A b")
    assert verbose["duration"] == 3662.0
    assert [(s["id"], s["start"], s["end"]) for s in verbose["segments"]] == [
        (0, 0.0, 1.5),
        (1, 3661.25, 3662.0),
    ]
    assert (await transcribed(door, response_format="text")).text == "Hello. A b\n"
    assert (await transcribed(door, response_format="srt")).text == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello.\n\n2\n01:01:01,250 --> 01:01:02,000\nA -> b c\n\n"
    )
    assert (await transcribed(door, response_format="vtt")).text == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello.\n\n"
        "01:01:01.250 --> 01:01:02.000\nA -> b c\n\n"
    )


async def test_a_stream_of_segments(door: Door) -> None:
    answer = await transcribed(door, stream="true")
    assert answer.headers["content-type"] == "text/event-stream"
    events = [json.loads(line[6:]) for line in answer.text.split("\n") if line]
    assert events == [
        {"type": "transcript.text.delta", "delta": "Hello."},
        {"type": "transcript.text.delta", "delta": " A --> b\n\nc"},
        {"type": "transcript.text.done", "text": "Hello. A --> b\n\nc"},
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "x"}, "prompt"),
        ({"temperature": "0.5"}, "temperature"),
        ({"timestamp_granularities[]": ["word"]}, "timestamp_granularities"),
        ({"response_format": "docx"}, "response_format"),
        ({"response_format": "srt", "stream": "true"}, "response_format"),
        ({"stream": "perhaps"}, "stream"),
        ({"x" * 70_000: "y"}, None),
        ({f"f{index}": "y" for index in range(70)}, None),
    ],
)
async def test_what_is_not_supported_is_refused(door: Door, fields: dict, param: str) -> None:
    answer = await transcribed(door, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert door.script.requests == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"--x\r\nnonsense\r\n"),
        ("multipart/form-data; boundary=" + "x" * 300, b"--x--"),
    ],
)
async def test_what_is_not_a_form_is_refused(door: Door, kind: str, body: bytes) -> None:
    answer = await door.client.post(TRANSCRIPTIONS, content=body, headers={"content-type": kind})
    assert answer.status_code == 400, answer.text


async def test_a_form_of_many_files_is_refused(door: Door) -> None:
    files = [("other", ("a", b"x"))] * 70
    answer = await door.client.post(TRANSCRIPTIONS, files=files, data={"model": "m"})
    assert answer.status_code == 400
    assert "more than 64 fields" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
async def test_speech_in_every_format(door: Door, name: str) -> None:
    rate, seconds = 22_050, 0.5
    wave = [0.5 * math.sin(2 * math.pi * 440 * i / rate) for i in range(int(rate * seconds))]
    samples = struct.pack(f"<{len(wave)}f", *wave)
    door.script.inferred = pb.InferResponse(
        audio=pb.AudioData(data=samples, format="pcm_f32le", rate=rate, channels=1)
    )
    body = {"model": "m", "input": "Hi.", "voice": "alloy", "response_format": name}
    answer = await door.client.post("/v1/audio/speech", json=body)
    assert answer.status_code == 200, answer.text
    options = {"format": "s16le", "options": {"sample_rate": "24000"}} if name == "pcm" else {}
    with av.open(io.BytesIO(answer.content), **options) as container:
        frames = list(container.decode(audio=0))
    total = sum(frame.samples / frame.sample_rate for frame in frames)
    assert total == pytest.approx(seconds, abs=0.15)  # codecs add silence at both ends
    loudest = max(abs(float(frame.to_ndarray().max())) for frame in frames)
    scale = 32767 if frames[0].format.name.startswith("s16") else 1
    assert loudest / scale == pytest.approx(0.5, abs=0.1)


async def test_voices_are_numbers_or_openais_names(door: Door) -> None:
    door.script.inferred = pb.InferResponse(
        audio=pb.AudioData(data=bytes(4000), format="pcm_f32le", rate=8000, channels=1)
    )
    for voice in ("3", "nova"):
        body = {"model": "m", "input": "Hi.", "voice": voice, "response_format": "wav"}
        assert (await door.client.post("/v1/audio/speech", json=body)).status_code == 200
    assert [dict(request.options) for request in door.script.requests] == [{"speaker": "3"}, {}]
    error = await door.refused("/v1/audio/speech", {"model": "m", "input": "Hi.", "voice": "Bob"})
    assert error["param"] == "voice"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"speed": 2}, "speed"),
        ({"instructions": "x"}, "instructions"),
        ({"stream_format": "sse"}, "stream_format"),
    ],
)
async def test_other_wishes_for_speech_are_refused(door: Door, fields: dict, param: str) -> None:
    body = {"model": "m", "input": "Hi.", "voice": "alloy"} | fields
    assert (await door.refused("/v1/audio/speech", body))["param"] == param
