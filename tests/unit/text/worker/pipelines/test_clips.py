"""Labels of sounds and videos, held against transformers called directly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as t

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError
from tests.support.strange_models import change_json
from tests.support.text_pipeline import Tiny, infer, scores, spec_of
from tests.support.video_files import decoded, pictures, video
from text_svc.worker.pipelines.audio_to_audio import SoundCodec
from text_svc.worker.pipelines.video_classification import VideoClassifier

RATE = 16_000
VIDEO_MODELS = ["videomae", "timesformer", "vivit"]


def sound(seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    times = np.arange(int(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * 440 * times**2)).astype(np.float32)


@pytest.mark.parametrize("name", ["wav2vec2-sounds", "ast"])
async def test_sounds(tiny: Tiny, name: str) -> None:
    samples = sound(1.5)
    model = t.AutoModelForAudioClassification.from_pretrained(tiny(name)).eval()
    extractor = t.AutoFeatureExtractor.from_pretrained(tiny(name))
    pipeline = t.pipeline("audio-classification", model=model, feature_extractor=extractor)
    wanted = {each["label"]: each["score"] for each in pipeline(samples)}
    audio = pb.AudioData(data=samples.tobytes(), format="pcm_f32le", rate=RATE)
    response = await infer(tiny(name), "audio-classification", audio=audio)
    assert scores(response) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("seconds", "words"), [(31, "longer than the limit of 30 s"), (0.05, "0.1 s or more")]
)
async def test_sounds_that_are_refused(tiny: Tiny, seconds: float, words: str) -> None:
    audio = pb.AudioData(data=sound(seconds).tobytes(), format="pcm_f32le", rate=RATE)
    with pytest.raises(Exception, match=words):
        await infer(tiny("wav2vec2-sounds"), "audio-classification", audio=audio)


def expected(tiny: Tiny, name: str, frames: list[np.ndarray]) -> dict[str, float]:
    """Scores of a model that sees these frames."""
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    model = t.AutoModelForVideoClassification.from_pretrained(tiny(name)).eval()
    processor = AutoImageProcessor.from_pretrained(tiny(name))
    with torch.inference_mode():
        logits = model(**processor(frames, return_tensors="pt")).logits[0]
    return dict(zip(["run", "jump", "sit"], logits.softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("name", VIDEO_MODELS)
async def test_frames_of_the_whole_clip(tiny: Tiny, name: str) -> None:
    data = video(pictures(13))
    frames = decoded(data)
    wanted = expected(tiny, name, [frames[index] for index in (0, 4, 8, 12)])
    response = await infer(tiny(name), "video-classification", video=pb.VideoData(data=data))
    assert scores(response) == pytest.approx(wanted, abs=1e-4)


async def test_frames_as_transformers_pipeline_takes_them(tiny: Tiny) -> None:
    data = video(pictures(13))
    frames = decoded(data)
    for rate, indices in ((1, (0, 1, 2, 3)), (3, (0, 3, 7, 11))):
        wanted = expected(tiny, "videomae", [frames[index] for index in indices])
        response = await infer(
            tiny("videomae"),
            "video-classification",
            video=pb.VideoData(data=data),
            options={"frame_sampling_rate": rate},
        )
        assert scores(response) == pytest.approx(wanted, abs=1e-4)


async def test_a_clip_of_less_frames_than_the_model_sees(tiny: Tiny) -> None:
    data = video(pictures(2))
    first, second = decoded(data)
    wanted = expected(tiny, "videomae", [first, first, first, second])
    response = await infer(tiny("videomae"), "video-classification", video=pb.VideoData(data=data))
    assert scores(response) == pytest.approx(wanted, abs=1e-4)
    model = VideoClassifier(spec_of(tiny("videomae"), "video-classification"))
    with pytest.raises(InvalidArgumentError, match=r"2 frames; 4 frames .* need 4"):
        model._indices(2, model.options(frame_sampling_rate=1))


@pytest.mark.parametrize("name", ["encodec", "dac", "mimi"])
async def test_codecs_give_a_sound_back(tiny: Tiny, name: str) -> None:
    kind = {"encodec": t.EncodecModel, "dac": t.DacModel, "mimi": t.MimiModel}[name]
    model = kind.from_pretrained(tiny(name)).eval()
    extractor = t.AutoFeatureExtractor.from_pretrained(tiny(name))
    rate = extractor.sampling_rate
    samples = np.random.default_rng(0).normal(0, 0.2, rate // 2 + 7).astype(np.float32)
    inputs = extractor(samples, sampling_rate=rate, return_tensors="pt")
    inputs.pop("padding_mask", None)  # there is no padding
    with torch.inference_mode():
        wanted = model(**inputs).audio_values.reshape(-1)[: len(samples)].numpy()
    audio = pb.AudioData(data=samples.tobytes(), format="pcm_f32le", rate=rate)
    response = await infer(tiny(name), "audio-to-audio", audio=audio)
    found = np.frombuffer(response.audio.data, "<f4")
    assert (response.audio.rate, response.audio.channels) == (rate, 1)
    assert len(found) == len(samples)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(found).max() > 0


async def test_the_quality_of_a_codec(tiny: Tiny) -> None:
    audio = pb.AudioData(data=sound(0.3).tobytes(), format="pcm_f32le", rate=RATE)
    low, high = [
        await infer(tiny("encodec"), "audio-to-audio", audio=audio, options={"bandwidth": value})
        for value in (15.0, 30.0)
    ]
    assert low.audio.data != high.audio.data
    for name, words in (("encodec", r"must be one of 15\.0, 30\.0"), ("dac", "must be left out")):
        with pytest.raises(Exception, match=words):
            await infer(tiny(name), "audio-to-audio", audio=audio, options={"bandwidth": 7})


def test_a_voice_without_its_vocoder_is_refused(tmp_path: Path) -> None:
    change_json(tmp_path / "config.json", model_type="speecht5")
    with pytest.raises(InvalidModelError, match=r"speecht5; it must be one of .* a vocoder"):
        SoundCodec(spec_of(tmp_path, "audio-to-audio"))
