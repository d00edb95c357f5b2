"""Pipelines of sounds behind Infer, over gRPC, compared with transformers called directly."""

from __future__ import annotations

import threading
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import transformers

from ml import transformers_pb2 as pb
from shared.errors import CallCancelledError
from tests.support.text_pipeline import Tiny, infer, scores, spec_of
from text_svc.worker.pipelines.speech_recognition import (
    SpeechOptions,
    SpeechRecognizer,
)

RATE = 16_000


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """A second of a chord with noise, 16 kHz."""
    time = np.arange(RATE) / RATE
    tones = sum(np.sin(2 * np.pi * pitch * time) for pitch in (220, 330, 550))
    noise = np.random.default_rng(0).normal(0, 0.1, RATE)
    return (tones * 0.2 + noise).astype(np.float32)


def samples(sound: np.ndarray, rate: int = RATE) -> pb.AudioData:
    return pb.AudioData(data=sound.astype("<f4").tobytes(), format="pcm_f32le", rate=rate)


async def test_clap(tiny: Tiny, sound: np.ndarray) -> None:
    folder = tiny("clap")
    model = transformers.ClapModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    rate = processor.feature_extractor.sampling_rate
    texts = [f"This is a sound of {label}." for label in ("rain", "music")]
    words = processor(text=texts, padding=True, return_tensors="pt")
    heard = processor(audio=sound, sampling_rate=rate, return_tensors="pt")
    with torch.inference_mode():
        output = model(**words, **heard)
    wanted = output.logits_per_audio[0].softmax(-1).tolist()
    audio = samples(sound, rate)
    response = await infer(folder, "clap", audio=audio, labels=["rain", "music"])
    assert scores(response) == pytest.approx(dict(zip(("rain", "music"), wanted, strict=True)))
    alone = await infer(folder, "clap", audio=audio)
    assert alone.vector.values == pytest.approx(output.audio_embeds[0].tolist(), abs=1e-5)
    long = samples(np.concatenate([sound] * 4), rate)
    once, again = [await infer(folder, "clap", audio=long) for _ in range(2)]
    assert once == again, "the part of a long sound is not by chance"
    read = await infer(folder, "clap", text=texts[0])
    assert read.vector.values == pytest.approx(output.text_embeds[0].tolist(), abs=1e-5)


async def test_whisper(tiny: Tiny, sound: np.ndarray) -> None:
    folder = tiny("whisper")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    inputs = processor(sound, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    output = model.generate(
        **inputs, language="de", task="translate", return_timestamps=True, return_segments=True
    )
    wanted = [
        processor.tokenizer.decode(one["tokens"], skip_special_tokens=True).strip()
        for one in output["segments"][0]
    ]
    response = await infer(
        folder, "whisper", audio=samples(sound), options={"language": "de", "task": "translate"}
    )
    assert [segment.text for segment in response.segments] == wanted
    assert wanted
    assert all(segment.end <= 1 for segment in response.segments), "the sound has one second"


async def test_moonshine(tiny: Tiny, sound: np.ndarray) -> None:
    folder = tiny("moonshine")
    model = transformers.MoonshineForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(sound, sampling_rate=RATE, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=6)
    wanted = processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    response = await infer(folder, "moonshine", audio=samples(sound))
    assert response.text == wanted
    assert [segment.end for segment in response.segments] == [1]


@pytest.mark.parametrize("name", ["moonshine", "wav2vec2"])
async def test_a_long_sound_is_heard_in_pieces(tiny: Tiny, sound: np.ndarray, name: str) -> None:
    """A model that hears all at once would need memory with the square of its length."""
    pause = np.zeros(2 * RATE, np.float32)
    folder, part = tiny(name), np.concatenate([sound] * 5)
    whole = np.concatenate([pause, part, *[pause, part] * 5])
    spec = spec_of(folder, "asr")
    recognizer = SpeechRecognizer(spec)
    heard: list[int] = []

    def seen(_: Any, __: Any, inputs: dict[str, torch.Tensor]) -> None:
        heard.append(inputs["input_values"].shape[1])

    encoder = recognizer.model.get_encoder() if name == "moonshine" else recognizer.model
    encoder.register_forward_pre_hook(seen, with_kwargs=True)
    request = pb.InferRequest(audio=samples(whole))
    answer = recognizer.infer(request, SpeechOptions(), threading.Event())
    assert len(heard) == len(answer.segments) == 6
    assert max(heard) < 8 * RATE
    starts = [segment.start for segment in answer.segments]
    assert starts == pytest.approx([7 * index + 1.5 for index in range(6)], abs=1)
    assert answer.text.split() == " ".join(s.text for s in answer.segments).split()


async def test_a_cancel_ends_a_long_whisper_at_its_next_token(tiny: Tiny) -> None:
    recognizer = SpeechRecognizer(spec_of(tiny("whisper"), "asr"))
    cancelled, windows = threading.Event(), []

    def seen(*_: Any) -> None:
        windows.append(1)
        cancelled.set()

    recognizer.model.get_encoder().register_forward_hook(seen)
    minutes = np.random.default_rng(0).normal(0, 0.1, 120 * RATE).astype(np.float32)
    with pytest.raises(CallCancelledError):
        recognizer.transcribe(minutes, SpeechOptions(language="en"), cancelled)
    assert len(windows) == 1


async def test_text_to_speech(tiny: Tiny) -> None:
    folder = tiny("vits")
    model = transformers.VitsModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(7)
    with torch.inference_mode():
        wave = model(**tokenizer("hello world", return_tensors="pt")).waveform[0].numpy()
    response = await infer(folder, "tts", text="hello world", options={"seed": 7})
    assert response.audio.rate == model.config.sampling_rate
    assert response.audio.format == "pcm_f32le"
    assert np.frombuffer(response.audio.data, "<f4") == pytest.approx(wave, abs=1e-5)
    with pytest.raises(grpc.aio.AioRpcError, match="nothing that can be spoken"):
        await infer(folder, "tts", text="日本")
