"""TranscribeStream: what Whisper makes of a sound while it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest

from ml import transformers_pb2 as pb
from tests.support.speech import speak, wav
from tests.support.stack import MODELS
from tests.support.text_pipeline import serve, spec_of

RATE = 16_000
WHISPER = MODELS / "text" / "openai" / "whisper-tiny.en"
SENTENCES = ("The dog is in the house.", "She is on the sea shore.", "We walk to the old town.")


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
