"""TranscribeStream: where the sound is cut, and what Whisper makes of it while it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import transformers_pb2 as pb
from tests.support.speech import speak, wav
from tests.support.stack import MODELS
from tests.support.text_pipeline import serve, spec_of
from text_svc.worker.media.speech_cutter import (
    Piece,
    SpeechCutter,
)

RATE = 16_000
WHISPER = MODELS / "text" / "openai" / "whisper-tiny.en"
SENTENCES = ("The dog is in the house.", "She is on the sea shore.", "We walk to the old town.")


def sound(seconds: float, level: float = 0.2) -> np.ndarray:
    size = int(seconds * RATE)
    return (np.random.default_rng(0).normal(0, level, size)).clip(-1, 1).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.float32)


def cut(samples: np.ndarray, chunk: int, longest: float = 30) -> list[Piece]:
    cutter = SpeechCutter(RATE, longest)
    chunks = [samples[at : at + chunk] for at in range(0, len(samples), chunk)]
    pieces = [piece for each in chunks for piece in cutter.add(each)]
    last = cutter.rest()
    assert cutter.seconds == pytest.approx(len(samples) / RATE)
    return [*pieces, last] if last else pieces


def spans(pieces: list[Piece]) -> list[tuple[float, float]]:
    return [(each.start, each.start + len(each.samples) / RATE) for each in pieces]


def test_a_pause_ends_a_piece_and_silence_is_left_out() -> None:
    parts = [silence(4), sound(2), silence(3), sound(6), silence(0.7), sound(1)]
    found = spans(cut(np.concatenate(parts), chunk=1000))
    wanted = [(4, 6), (9, 15), (15.7, 16.7)]
    assert len(found) == len(wanted)
    for (start, end), (begun, ended) in zip(found, wanted, strict=True):
        assert begun - 1 <= start <= begun
        assert ended <= end <= ended + 1


def test_silence_alone_is_no_piece() -> None:
    assert cut(silence(100), chunk=4000) == []


def test_without_a_pause_the_cut_is_in_the_quietest_place() -> None:
    samples = sound(50)
    samples[25 * RATE : int(25.1 * RATE)] *= 0.3
    found = spans(cut(samples, chunk=7777))
    assert found[0][1] == pytest.approx(25.05, abs=0.06)
    assert found[-1][1] == pytest.approx(50)
    assert all(end - start <= 30.01 for start, end in found)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.1, 9), st.sampled_from([0.0, 0.05, 0.3])), min_size=1, max_size=6
    ),
    st.integers(1, 50_000),
)
def test_the_chunks_do_not_matter_and_no_sound_is_lost(
    parts: list[tuple[float, float]], chunk: int
) -> None:
    samples = np.concatenate([sound(seconds, level) for seconds, level in parts])
    whole, pieces = cut(samples, len(samples), longest=5), cut(samples, chunk, longest=5)
    assert spans(whole) == spans(pieces)
    kept = np.zeros(len(samples), bool)
    for piece in pieces:
        start = round(piece.start * RATE)
        assert (samples[start : start + len(piece.samples)] == piece.samples).all()
        assert not kept[start : start + len(piece.samples)].any(), "pieces do not overlap"
        kept[start : start + len(piece.samples)] = True
    assert np.abs(samples[~kept]).max(initial=0) < 0.05 * 6, "what is left out is quiet"


def requests(samples: np.ndarray, rate: int, chunk: int = 8000) -> Iterator[pb.TranscribeRequest]:
    for at in range(0, len(samples), chunk):
        data = samples[at : at + chunk].astype("<i2").tobytes()
        yield pb.TranscribeRequest(audio=pb.AudioData(data=data, format="pcm_s16le", rate=rate))


@pytest.mark.skipif(not WHISPER.is_dir(), reason=f"there is no {WHISPER}: run `make models`")
async def test_segments_come_while_the_speech_goes_on() -> None:
    spoken = [speak(sentence) for sentence in SENTENCES]
    rate = spoken[0][1]
    pause = np.zeros(rate * 2, np.int16)
    gate = asyncio.Event()

    async def sentences() -> AsyncIterator[pb.TranscribeRequest]:
        for index, (samples, _) in enumerate(spoken):
            for request in requests(np.concatenate([samples, pause]), rate):
                yield request
            if index == 0:
                await gate.wait()  # the rest is said when the first sentence is written

    written: list[pb.TranscriptSegment] = []
    async with serve(spec_of(WHISPER, "asr")) as stub:
        async for response in stub.TranscribeStream(sentences()):
            written += response.segments
            if written:
                gate.set()
        infer = await stub.Infer(pb.InferRequest(audio=pb.AudioData(data=wav(*spoken[0]))))
    starts = [segment.start for segment in written]
    assert starts == sorted(starts)
    ends = np.cumsum([len(samples) / rate + 2 for samples, _ in spoken])
    for sentence, begin, end in zip(SENTENCES, [0, *ends], ends, strict=False):
        inside = [one for one in written if begin - 1 <= one.start < end - 1]
        heard = set(" ".join(one.text for one in inside).lower().replace(".", "").split())
        wanted = set(sentence.lower().replace(".", "").split())
        assert len(heard & wanted) >= 0.5 * len(wanted), (sentence, heard)
    assert infer.text.split()[0] == written[0].text.split()[0]
    assert response.seconds == pytest.approx(ends[-1], abs=0.1)


@pytest.mark.skipif(not WHISPER.is_dir(), reason=f"there is no {WHISPER}: run `make models`")
async def test_bad_streams_have_a_clear_status() -> None:
    good = pb.AudioData(data=b"\0" * 3200, format="pcm_s16le", rate=RATE)
    slower = pb.AudioData(data=b"\0" * 3200, format="pcm_s16le", rate=8000)
    cases: list[tuple[list[pb.TranscribeRequest], str]] = [
        ([pb.TranscribeRequest()], "no request has audio"),
        ([pb.TranscribeRequest(audio=pb.AudioData())], "audio.data is empty"),
        ([pb.TranscribeRequest(audio=pb.AudioData(data=b"no sound"))], "audio.data is not a WAV"),
        ([pb.TranscribeRequest(audio=good, options={"colour": "red"})], "num_beams"),
        (
            [pb.TranscribeRequest(audio=good), pb.TranscribeRequest(audio=slower)],
            "cannot be decoded",
        ),
    ]
    async with serve(spec_of(WHISPER, "asr")) as stub:
        for stream, words in cases:
            with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
                async for _ in stub.TranscribeStream(iter(stream)):
                    pass
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, words
        quiet = [answer async for answer in stub.TranscribeStream(requests(np.zeros(RATE), RATE))]
    assert [list(answer.segments) for answer in quiet] == [[]]
    assert quiet[-1].seconds == pytest.approx(1)
