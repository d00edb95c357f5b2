"""Every family behind Infer, over gRPC, held against transformers called directly."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from ml import transformers_pb2 as pb
from shared.pipelines import TEXT_PIPELINES
from tests.support import tiny_models
from tests.support.text_family import launch_of, serve
from text_svc.worker.families import FAMILIES

Tiny = Callable[[str], Path]
RATE = 16_000


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Builds a tiny model once, and returns its folder."""
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tiny_models.build(name, root / name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="session")
def sound() -> np.ndarray:
    """A second of a chord with noise, 16 kHz."""
    time = np.arange(RATE) / RATE
    tones = sum(np.sin(2 * np.pi * pitch * time) for pitch in (220, 330, 550))
    noise = np.random.default_rng(0).normal(0, 0.1, RATE)
    return (tones * 0.2 + noise).astype(np.float32)


async def infer(folder: Path, pipeline: str, **request: Any) -> pb.InferResponse:
    options = {name: str(value) for name, value in request.pop("options", {}).items()}
    async with serve(launch_of(folder, pipeline)) as stub:
        return await stub.Infer(pb.InferRequest(**request, options=options))


def png(picture: Image.Image) -> pb.ImageData:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return pb.ImageData(data=file.getvalue())


def samples(sound: np.ndarray, rate: int = RATE) -> pb.AudioData:
    return pb.AudioData(data=sound.astype("<f4").tobytes(), format="pcm_f32le", rate=rate)


def scores(response: pb.InferResponse) -> dict[str, float]:
    values = [label.score for label in response.labels]
    assert values == sorted(values, reverse=True), "the best comes first"
    return {label.label: label.score for label in response.labels}


def test_every_text_pipeline_has_a_family() -> None:
    assert {pipeline.name for pipeline in TEXT_PIPELINES} == FAMILIES.keys()


@pytest.mark.parametrize("multi_label", [False, True])
async def test_zero_shot_classification(tiny: Tiny, multi_label: bool) -> None:
    folder, labels = tiny("bert-nli"), ["music", "paris", "apples"]
    expected = transformers.pipeline("zero-shot-classification", model=str(folder))(
        "a photo of a cat", candidate_labels=labels, multi_label=multi_label
    )
    response = await infer(
        folder,
        "zero-shot",
        text="a photo of a cat",
        labels=labels,
        options={"multi_label": multi_label},
    )
    wanted = dict(zip(expected["labels"], expected["scores"], strict=True))
    assert scores(response) == pytest.approx(wanted, abs=1e-5)


async def test_text_classification(tiny: Tiny) -> None:
    folder = tiny("bert-nli")
    pipeline = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    one = {each["label"]: each["score"] for each in pipeline(["hello world"])[0]}
    two = {each["label"]: each["score"] for each in pipeline({"text": "a cat", "text_pair": "x"})}
    assert scores(await infer(folder, "text-classification", text="hello world")) == pytest.approx(
        one, abs=1e-5
    )
    pair = pb.TextPair(first="a cat", second="x")
    assert scores(await infer(folder, "sentiment-analysis", text_pair=pair)) == pytest.approx(
        two, abs=1e-5
    )
    best = await infer(folder, "text-classification", text="hello world", options={"top_k": 1})
    assert list(scores(best)) == [max(one, key=one.__getitem__)]


async def test_reranking_as_a_cross_encoder(tiny: Tiny) -> None:
    from sentence_transformers import CrossEncoder

    folder, query = tiny("bert-rank"), "the cat"
    documents = ["a dog", "the price of apples in paris " * 9, "x", "what does the cat do", ""]
    expected = CrossEncoder(str(folder), device="cpu").predict([(query, d) for d in documents])
    ranking = pb.Ranking(query=query, documents=documents)
    response = await infer(folder, "cross-encoder", ranking=ranking)
    got = {document.index: document.score for document in response.documents}
    assert got == pytest.approx(dict(enumerate(map(float, expected))), abs=1e-5)
    order = [document.index for document in response.documents]
    assert order == sorted(got, key=got.__getitem__, reverse=True)
    best = await infer(folder, "reranking", ranking=ranking, options={"top_k": 2})
    assert [document.index for document in best.documents] == order[:2]


@pytest.mark.parametrize("aggregation", ["none", "simple", "max"])
async def test_token_classification(tiny: Tiny, aggregation: str) -> None:
    folder, text = tiny("bert-ner"), "héllo paris and music"
    pipeline = transformers.pipeline("token-classification", model=str(folder))
    expected = pipeline(text, aggregation_strategy=aggregation)
    response = await infer(folder, "ner", text=text, options={"aggregation": aggregation})
    assert [(span.start, span.end) for span in response.spans] == [
        (one["start"], one["end"]) for one in expected
    ]
    for span, one in zip(response.spans, expected, strict=True):
        assert span.label == one.get("entity_group", one.get("entity"))
        assert span.score == pytest.approx(float(one["score"]), abs=1e-5)
        assert span.text == text[span.start : span.end]


async def test_tokenizer_there_and_back(tiny: Tiny) -> None:
    folder, text = tiny("bert"), "hello paris"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text)["input_ids"]
    response = await infer(folder, "tokenizer", text=text)
    assert [token.id for token in response.tokens] == ids
    assert [token.text for token in response.tokens] == tokenizer.convert_ids_to_tokens(ids)
    assert "".join(text[token.start : token.end] for token in response.tokens) == text
    back = await infer(
        folder, "tokenizer", token_ids=pb.TokenIds(ids=ids), options={"skip_special_tokens": True}
    )
    assert back.text == text


async def test_tokenizer_without_a_fast_one(tiny: Tiny) -> None:
    folder = tiny("marian")
    expected = transformers.AutoTokenizer.from_pretrained(folder)("hello world")["input_ids"]
    response = await infer(folder, "tokenizer", text="hello world")
    assert [token.id for token in response.tokens] == expected


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [("t5", "text2text-generation"), ("marian", "translation"), ("t5", "summarization")],
)
@pytest.mark.parametrize("beams", [1, 3])
async def test_sequence_to_sequence(tiny: Tiny, name: str, pipeline: str, beams: int) -> None:
    folder, text = tiny(name), "hello world what does the image describe ?"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=12, num_beams=beams, do_sample=False)
    expected = tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    options = {"max_new_tokens": 12, "num_beams": beams}
    response = await infer(folder, pipeline, text=text, options=options)
    assert response.text == expected
    assert expected


@pytest.mark.parametrize(("name", "pipeline"), [("t5", "text2text"), ("marian", "translation")])
async def test_sequence_to_sequence_streams_by_generate_text(
    tiny: Tiny, name: str, pipeline: str
) -> None:
    folder, text = tiny(name), "hello world"
    whole = await infer(folder, pipeline, text=text, options={"max_new_tokens": 12})
    async with serve(launch_of(folder, pipeline)) as stub:
        request = pb.TextRequest(prompt=text, max_length=12)
        answers = [answer async for answer in stub.GenerateText(request)]
    assert "".join(answer.text for answer in answers).strip() == whole.text
    assert len(answers) > 2, "it came in pieces"
    assert [answer.done for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert answers[-1].tokens_generated <= 12
    assert answers[-1].finish_reason in ("stop", "length")


async def test_an_answer_ends_where_the_decoder_does(tiny: Tiny) -> None:
    response = await infer(tiny("marian"), "translation", text="a" * 30)
    assert response.text


async def test_a_text_that_the_encoder_cannot_hold_is_refused(tiny: Tiny) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="the model reads 64") as caught:
        await infer(tiny("marian"), "translation", text="a" * 500)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_clip(tiny: Tiny, picture: Image.Image) -> None:
    folder = tiny("clip")
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    texts = [f"This is a photo of {label}." for label in ("cat", "dog")]
    inputs = processor(text=texts, images=picture, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    wanted = dict(zip(("cat", "dog"), output.logits_per_image[0].softmax(-1).tolist(), strict=True))
    response = await infer(folder, "clip", image=png(picture), labels=["cat", "dog"])
    assert scores(response) == pytest.approx(wanted, abs=1e-5)
    image = await infer(folder, "clip", image=png(picture))
    assert image.vector.values == pytest.approx(output.image_embeds[0].tolist(), abs=1e-5)
    text = await infer(folder, "zero-shot-image-classification", text=texts[1])
    assert text.vector.values == pytest.approx(output.text_embeds[1].tolist(), abs=1e-5)


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
    read = await infer(folder, "clap", text=texts[0])
    assert read.vector.values == pytest.approx(output.text_embeds[0].tolist(), abs=1e-5)


async def test_image_classification(tiny: Tiny, picture: Image.Image) -> None:
    folder = tiny("vit")
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    images = transformers.ViTImageProcessorPil.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(**images(picture, return_tensors="pt")).logits[0].softmax(-1)
    wanted = {f"LABEL_{index}": float(score) for index, score in enumerate(logits)}
    response = await infer(folder, "image-classification", image=png(picture))
    assert scores(response) == pytest.approx(wanted, abs=1e-5)


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


async def test_image_to_text(tiny: Tiny, picture: Image.Image) -> None:
    folder = tiny("blip")
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    ids = model.generate(**processor(images=picture, return_tensors="pt"), max_new_tokens=5)
    wanted = processor.decode(ids[0], skip_special_tokens=True).strip()
    response = await infer(
        folder, "image-to-text", image=png(picture), options={"max_new_tokens": 5}
    )
    assert response.text == wanted
    assert wanted


async def test_visual_language(tiny: Tiny, picture: Image.Image) -> None:
    folder = tiny("llava")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(text="<image>\nwhat ?", images=picture, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    wanted = processor.decode(ids, skip_special_tokens=True).strip()
    response = await infer(
        folder, "vlm", image=png(picture), prompt="what ?", options={"max_new_tokens": 5}
    )
    assert response.text == wanted
    assert wanted


@pytest.mark.parametrize("task", ["<OCR>", "<OD>", "<OCR_WITH_REGION>"])
async def test_florence2(tiny: Tiny, picture: Image.Image, task: str) -> None:
    folder = tiny("florence2")
    model = transformers.Florence2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(text=task, images=picture, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=30, num_beams=1, do_sample=False)
    text = processor.decode(ids[0], skip_special_tokens=False)
    answer = processor.post_process_generation(text, task=task, image_size=picture.size)[task]
    response = await infer(
        folder, "florence-2", image=png(picture), prompt=task, options={"max_new_tokens": 30}
    )
    if isinstance(answer, str):
        assert response.text == answer.strip()
        return
    boxes = answer.get("bboxes") or answer.get("quad_boxes") or []
    assert [region.label for region in response.regions] == answer["labels"][: len(boxes)]
    for region, box in zip(response.regions, boxes, strict=True):
        sides = [picture.size[place % 2] for place in range(len(box))]
        pixels = [point * side for point, side in zip(region.points, sides, strict=True)]
        assert pixels == pytest.approx(box, abs=1), "transformers gives whole pixels"


async def test_janus_sees(tiny: Tiny, picture: Image.Image) -> None:
    folder = tiny("janus")
    model = transformers.JanusForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(text="<image_placeholder>\nwhat ?", images=picture, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    wanted = processor.decode(ids, skip_special_tokens=True).strip()
    response = await infer(
        folder, "janus", image=png(picture), prompt="what ?", options={"max_new_tokens": 5}
    )
    assert response.text == wanted


async def test_janus_draws(tiny: Tiny) -> None:
    folder = tiny("janus")
    model = transformers.JanusForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(text="a cat", generation_mode="image", return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, generation_mode="image", do_sample=False)
        pixels = model.decode_image_tokens(ids)[0]
    images = processor.image_processor
    mean, deviation = torch.tensor(images.image_mean), torch.tensor(images.image_std)
    wanted = ((pixels * deviation + mean) * 255).clamp(0, 255).to(torch.uint8).numpy()
    response = await infer(folder, "janus", text="a cat")
    drawn = np.asarray(Image.open(io.BytesIO(response.image.data)))
    assert drawn.shape == wanted.shape
    assert np.abs(drawn.astype(int) - wanted.astype(int)).max() <= 1
