"""Bad input to Infer, its queue, and real speech."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image, ImageOps

from ml import transformers_pb2 as pb
from shared.errors import QueueFullError, ServiceError
from tests.support import tiny_models
from tests.support.pictures import png_header
from tests.support.speech import speak, wav
from tests.support.stack import MODELS
from tests.support.text_pipeline import serve, spec_of
from tests.support.waiting import until
from text_svc.worker.media.decode import decode_audio, decode_image
from text_svc.worker.model_thread import ModelThread

WHISPER = MODELS / "text" / "openai" / "whisper-tiny.en"


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 10), (10, 200, 30)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_of_every_kind(kind: str) -> None:
    decoded = decode_image(picture(kind), 1000)
    assert decoded.mode == "RGB"
    assert decoded.size == (12, 10)
    assert np.abs(np.asarray(decoded)[5, 5].astype(int) - (10, 200, 30)).max() < 8


def test_a_picture_whose_exif_is_broken_is_still_one() -> None:
    # Two entries: the orientation, and a resolution that is text where a number belongs.
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    resolution = struct.pack("<HHI4s", 0x011A, 2, 4, b"x\0\0\0")
    header = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    file = io.BytesIO()
    exif = header + orientation + resolution + b"\0" * 4
    Image.new("RGB", (12, 10)).save(file, "JPEG", exif=exif)
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(file))
    assert decode_image(file.getvalue(), 1000).size == (12, 10)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "MISSING_FIELD"),
        (b"nothing that is a picture", "UNDECODABLE_IMAGE"),
        (picture("PNG")[:40], "UNDECODABLE_IMAGE"),
        (picture("JPEG")[:-200], "UNDECODABLE_IMAGE"),
        (b"GIF89a" + b"\xff" * 40, "UNDECODABLE_IMAGE"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "UNDECODABLE_IMAGE"),
        (png_header(40_000, 40_000), "INPUT_TOO_LARGE"),
        (png_header(101, 100), "INPUT_TOO_LARGE"),
    ],
)
def test_bad_pictures(data: bytes, reason: str) -> None:
    with pytest.raises(ServiceError) as caught:
        decode_image(data, 10_000)
    assert caught.value.reason == reason


def pcm(**fields: Any) -> pb.AudioData:
    return pb.AudioData(**{"data": b"\0" * 3200, "format": "pcm_s16le", "rate": 16_000, **fields})


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (pcm(data=b""), "MISSING_FIELD"),
        (pcm(data=b"\0" * 3201), "INVALID_ARGUMENT"),
        (pcm(format="mp5"), "UNKNOWN_FORMAT"),
        (pcm(rate=0), "OUT_OF_RANGE"),
        (pcm(rate=10_000_000), "OUT_OF_RANGE"),
        (pcm(channels=3), "OUT_OF_RANGE"),
        (pcm(data=b"\0\0\xc0\x7f" * 100, format="pcm_f32le"), "INVALID_ARGUMENT"),
        (pcm(data=b"\0" * 400_000), "INPUT_TOO_LARGE"),
        (pb.AudioData(data=b"no sound at all"), "INVALID_ARGUMENT"),
        (pb.AudioData(data=b"RIFF" + b"\xff" * 400), "INVALID_ARGUMENT"),
        (pb.AudioData(data=b"OggS" + b"\0" * 400), "INVALID_ARGUMENT"),
        (pb.AudioData(data=b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), "INVALID_ARGUMENT"),
    ],
)
def test_bad_sounds(audio: pb.AudioData, reason: str) -> None:
    with pytest.raises(ServiceError) as caught:
        decode_audio(audio, 16_000, max_seconds=10)
    assert caught.value.reason == reason


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_sounds_are_resampled(rate: int) -> None:
    time = np.arange(rate) / rate
    tone = (np.sin(2 * np.pi * 440 * time) * 20_000).astype(np.int16)
    raw = decode_audio(pcm(data=tone.astype("<i2").tobytes(), rate=rate), 16_000, 10)
    file = decode_audio(pb.AudioData(data=wav(tone, rate)), 16_000, 10)
    assert len(raw) == pytest.approx(16_000, abs=40)
    assert np.abs(raw - file).max() < 1e-6
    peak = np.abs(np.fft.rfft(raw[:16_000])).argmax() * 16_000 / len(raw[:16_000])
    assert peak == pytest.approx(440, abs=2)


def test_two_channels_become_one() -> None:
    both = np.tile(np.array([8000, 16_000], "<i2"), 1600)
    mono = decode_audio(pcm(data=both.tobytes(), channels=2), 16_000, 10)
    assert len(mono) == 1600
    assert mono == pytest.approx(np.full(1600, 12_000 / 32_768), abs=1e-3)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tiny_models.build("bert-nli", tmp_path_factory.mktemp("models") / "bert-nli")


async def test_bad_requests(classifier: Path) -> None:
    invalid, exhausted = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
    image = pb.ImageData(data=picture("PNG"))
    cases: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
        ({"labels": ["x"]}, invalid, "takes text"),
        ({"image": image, "labels": ["x"]}, invalid, "takes text; the request has image"),
        ({"text": "", "labels": ["x"]}, invalid, "text is empty"),
        ({"text": "a"}, invalid, "labels"),
        ({"text": "a", "labels": ["x", ""]}, invalid, "labels"),
        ({"text": "a", "labels": ["x"] * 10_000}, exhausted, "limit of 2048"),
        ({"text": "a" * (5 << 20), "labels": ["x"]}, exhausted, "limit is"),
        ({"text": "a", "labels": ["x"], "options": {"colour": "red"}}, invalid, "multi_label"),
        (
            {"text": "a", "labels": ["x"], "options": {"multi_label": "maybe"}},
            invalid,
            "multi_label",
        ),
        ({"text": "a", "labels": ["x"], "options": {"hypothesis_template": "x"}}, invalid, "no {}"),
    ]
    async with serve(spec_of(classifier, "zero-shot")) as stub:
        for fields, code, words in cases:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Infer(pb.InferRequest(**fields))
            assert caught.value.code() is code, fields
            assert words in caught.value.details()
        answer = await stub.Infer(pb.InferRequest(text="nul\0 {} {0}", labels=["{x}", "\0"]))
        assert len(answer.labels) == 2, "it serves on"


async def test_a_caller_that_goes_stops_the_work() -> None:
    thread, seen = ModelThread(max_waiting=1), threading.Event()

    def work(cancelled: threading.Event) -> None:
        seen.set()
        assert cancelled.wait(30)

    running = asyncio.create_task(thread.run(work))
    await asyncio.to_thread(seen.wait)
    waiting = asyncio.create_task(thread.run(lambda _: "done"))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="1 wait"):
        await thread.run(lambda _: None)
    running.cancel()
    assert await waiting == "done"
    await until(lambda: not thread._active)


@pytest.mark.skipif(not WHISPER.is_dir(), reason=f"there is no {WHISPER}: run `make models`")
async def test_whisper_writes_what_was_spoken() -> None:
    sentences = "The dog is in the house. She is on the sea shore."
    spoken, rate = speak(sentences)
    async with serve(spec_of(WHISPER, "asr")) as stub:
        audio = pb.AudioData(data=wav(spoken, rate))
        response = await stub.Infer(pb.InferRequest(audio=audio))
        silence = np.zeros(rate * 10, np.int16)
        long = np.concatenate([spoken, silence, spoken, silence, spoken])
        longer = await stub.Infer(pb.InferRequest(audio=pb.AudioData(data=wav(long, rate))))
    heard = set(response.text.lower().replace(".", "").replace(",", "").split())
    wanted = set(sentences.lower().replace(".", "").split())
    assert len(heard & wanted) >= 0.7 * len(wanted), response.text
    assert response.segments[-1].end == pytest.approx(len(spoken) / rate, abs=1)
    assert len(longer.text) > 2 * len(response.text), "it is three times as much"
    starts = [segment.start for segment in longer.segments]
    assert starts == sorted(starts)
    assert starts[-1] > 20
