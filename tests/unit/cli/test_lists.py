"""Embeddings, ranks, transcripts and models: what is printed of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cli.commands.speech import clock
from cli.commands.vectors import cosine
from ml import model_management_pb2 as mgmt
from ml import transformers_pb2 as pb
from tests.support.scripted_services import Script
from tests.unit.cli.conftest import Person

MODEL = ("-m", "m/m")


def test_vectors_as_a_table_as_json_and_as_a_file(
    person: Person, script: Script, tmp_path: Path
) -> None:
    script.embeddings = [[3.0, 4.0], [4.0, -3.0], [0.6, 0.8]]
    out = tmp_path / "vectors.npy"
    said = person.types("embed", *MODEL, "one", "two", "three", "-o", str(out)).stdout
    assert [row.split()[0] for row in said.splitlines()] == ["COSINE", "1.000", "0.000", "1.000"]
    np.testing.assert_array_equal(np.load(out), np.array(script.embeddings, np.float32))
    lines = person.reads("embed", *MODEL, "--json", "-", stdin="one\r\n\ntwo\nthree")
    assert lines == [
        {"index": 0, "values": [3.0, 4.0]},
        {"index": 1, "values": [4.0, -3.0]},
        {"index": 2, "values": [0.6, 0.8]},
    ]
    assert list(script.requests[-1].texts) == ["three"]  # what comes later is another request


def test_cosine() -> None:
    assert cosine([1.0, 0.0], [1.0, 1.0]) == pytest.approx(0.5**0.5)
    assert cosine([0.0, 0.0], [1.0, 1.0]) == 0.0


def test_what_is_not_text_is_said(person: Person) -> None:
    said = person.types("embed", *MODEL, "-", stdin=b"\xff\xfe", exit_code=2).stderr
    assert said == "ml: stdin is not text\n"


def test_ranks(person: Person, script: Script) -> None:
    best = [pb.RankedDocument(index=1, score=0.75), pb.RankedDocument(index=0, score=-2)]
    script.inferred = pb.InferResponse(documents=best)
    said = person.types("rerank", *MODEL, "query", stdin="first\nsecond\n").stdout
    assert said == "SCORE    TEXT\n0.7500   second\n-2.0000  first\n"
    assert list(script.requests[0].ranking.documents) == ["first", "second"]
    lines = person.reads("rerank", *MODEL, "query", "first", "second", "--json", "--top", "1")
    assert lines == [{"index": 1, "score": 0.75, "text": "second"}]


def test_transcripts(person: Person, script: Script, tmp_path: Path) -> None:
    sound = tmp_path / "sound.wav"
    sound.write_bytes(b"sound")
    segments = [
        pb.TranscriptSegment(text=" One.", start=0, end=1.25),
        pb.TranscriptSegment(text=" Two.", start=3600, end=3661.0006),
    ]
    script.inferred = pb.InferResponse(text=" One. Two.", segments=segments)
    command = ("transcribe", *MODEL, str(sound))
    assert person.types(*command).stdout == "One. Two.\n"
    assert person.types(*command, "-f", "srt").stdout == (
        "1\n00:00:00,000 --> 00:00:01,250\nOne.\n\n2\n01:00:00,000 --> 01:01:01,001\nTwo.\n\n"
    )
    assert person.types(*command, "-f", "vtt").stdout.startswith(
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nOne.\n\n"
    )
    lines = person.reads(*command, "--json")
    assert lines[0] == {"text": "One.", "start": 0.0, "end": 1.25}
    assert script.requests[0].audio.data == b"sound"


def test_speech_while_it_is_spoken(person: Person, script: Script) -> None:
    """Samples have two bytes; a piece may end in the middle of one."""
    script.segments = [pb.TranscriptSegment(text=" Yes.", start=0, end=1)]
    samples = bytes(range(200)) * 41 + b"x"
    said = person.types("transcribe", *MODEL, "--rate", "16000", "-", stdin=samples).stdout
    assert said == "Yes.\n"
    first, *rest = script.requests
    assert (first.model, first.HasField("audio")) == ("m/m", False)
    assert b"".join(each.audio.data for each in rest) == samples[:-1]
    assert {(each.audio.format, each.audio.rate) for each in rest} == {("pcm_s16le", 16000)}


def test_a_fault_while_requests_are_made_is_said(person: Person) -> None:
    command = ("transcribe", *MODEL, "--rate", "16000", "nothing.pcm")
    assert person.types(*command, exit_code=2).stderr == (
        "ml: nothing.pcm: No such file or directory\n"
    )


def test_clock() -> None:
    assert clock(0.9996, ",") == "00:00:01,000"
    assert clock(86_399.5, ".") == "23:59:59.500"


def test_models_as_columns_and_as_json(person: Person, script: Script) -> None:
    script.models = [
        mgmt.ModelStatus(
            model_id="org/name",
            pipeline_type="text-generation",
            state=mgmt.MODEL_STATE_READY,
            engine="openvino",
            ram_bytes=(1 << 32) + 1,
        )
    ]
    head, row = person.types("models").stdout.splitlines()
    assert head.split()[:4] == ["MODEL", "TYPE", "STATE", "ENGINE"]
    assert row.split()[:5] == ["org/name", "text-generation", "ready", "openvino", "4097"]
    assert row.endswith("never")
    (status,) = person.reads("models", "--json")
    assert (status["state"], status["ram_bytes"]) == ("MODEL_STATE_READY", (1 << 32) + 1)


def test_no_models(person: Person) -> None:
    result = person.types("models")
    assert (result.stdout, result.stderr[:20]) == ("", "no models are loaded")
