"""Questions about pictures and pages, held against transformers called directly."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from PIL import Image
from transformers.pipelines.document_question_answering import select_starts_ends

from ml import transformers_pb2 as pb
from shared.errors import (
    InvalidArgumentError,
    InvalidModelError,
    MissingFieldError,
    OutOfRangeError,
    ServiceError,
)
from tests.support.pictures import picture, png
from tests.support.strange_models import change_json
from tests.support.text_pipeline import Tiny, infer, scores, spec_of
from text_svc.worker.infer.answers import AnswerOptions
from text_svc.worker.pipelines.document_question_answering import DocumentReader

RUNNING = threading.Event()
QUESTION = "what is the price ?"
WORDS = ["the", "price", "of", "apples", "is", "5", "in", "paris"]
BOXES = [[0.1 * index, 0.2, 0.1 * index + 0.09, 0.3] for index in range(len(WORDS))]
THOUSANDS = [[int(1000 * place + 1e-6) for place in box] for box in BOXES]


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return picture(0)


def page(image: Image.Image | None = None, count: int = 1) -> pb.Document:
    """The words, as often as `count`, and the image."""
    words = [
        pb.DocumentWord(text=text, box=box)
        for text, box in zip(WORDS * count, BOXES * count, strict=True)
    ]
    return pb.Document(words=words, image=png(image) if image else None)


async def test_vilt(tiny: Tiny, image: Image.Image) -> None:
    folder = tiny("vilt")
    model = t.ViltForQuestionAnswering.from_pretrained(folder).eval()
    images = t.ViltImageProcessorPil.from_pretrained(folder)
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        text = tokenizer(QUESTION, return_tensors="pt")
        logits = model(**text, **images(image, return_tensors="pt")).logits[0]
    wanted = dict(zip(["yes", "no", "red"], logits.sigmoid().tolist(), strict=True))
    response = await infer(folder, "vqa", image=png(image), prompt=QUESTION)
    assert scores(response) == pytest.approx(wanted, abs=1e-5)
    one = await infer(folder, "vqa", image=png(image), prompt=QUESTION, options={"top_k": 1})
    assert len(one.labels) == 1


async def test_blip_writes(tiny: Tiny, image: Image.Image) -> None:
    folder = tiny("blip-vqa")
    model = t.BlipForQuestionAnswering.from_pretrained(folder).eval()
    processor = t.AutoProcessor.from_pretrained(folder)
    inputs = processor(images=image, text=QUESTION, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=6)
    wanted = processor.decode(ids[0], skip_special_tokens=True).strip()
    options = {"max_new_tokens": 6}
    response = await infer(folder, "vqa", image=png(image), prompt=QUESTION, options=options)
    assert response.text == wanted
    assert wanted


async def test_questions_that_are_refused(tiny: Tiny, image: Image.Image) -> None:
    for prompt, options, words in (
        ("", {}, "prompt is empty"),
        ("what ? " * 40, {}, "the model's limit is 40"),
        ("what ?", {"max_new_tokens": 3}, "max_new_tokens"),
    ):
        with pytest.raises(Exception, match=words):
            await infer(tiny("vilt"), "vqa", image=png(image), prompt=prompt, options=options)


def find(folder: Path, document: pb.Document, **options: Any) -> list[pb.Answer]:
    model = DocumentReader(spec_of(folder, "docvqa"))
    request = pb.InferRequest(document=document, prompt=QUESTION)
    return list(model.infer(request, AnswerOptions(**options), RUNNING).answers)


@pytest.mark.parametrize("count", [1, 20])
def test_layoutlm_as_transformers_pipeline(tiny: Tiny, count: int) -> None:
    """Also a page that takes several windows."""
    folder = tiny("layoutlm")
    pipeline = t.pipeline(
        "document-question-answering",
        model=t.LayoutLMForQuestionAnswering.from_pretrained(folder),
        tokenizer=t.AutoTokenizer.from_pretrained(folder),
    )
    pipeline.tokenizer.model_max_length = 128
    boxes = list(zip(WORDS * count, THOUSANDS * count, strict=True))
    wanted = pipeline({"question": QUESTION, "word_boxes": boxes})
    found = find(folder, page(count=count))
    assert [(a.text, a.start, a.end - 1) for a in found] == [
        (each["answer"], each["start"], each["end"]) for each in wanted
    ]
    assert found[0].score == pytest.approx(wanted[0]["score"], rel=1e-3)


def test_layoutlmv3_with_its_own_processor(tiny: Tiny, image: Image.Image) -> None:
    folder = tiny("layoutlmv3")
    model = t.LayoutLMv3ForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = t.LayoutLMv3Tokenizer.from_pretrained(folder)
    images = t.LayoutLMv3ImageProcessorPil.from_pretrained(folder, apply_ocr=False)
    encoded = tokenizer(QUESTION, WORDS, boxes=THOUSANDS, return_tensors="pt")
    with torch.inference_mode():
        output = model(**encoded, **images(image, return_tensors="pt"))
    tokens = encoded["input_ids"].shape[1]
    outside = torch.tensor([which != 1 for which in encoded.sequence_ids(0)]).int()
    outside[0] = 0
    start, end, score, _ = select_starts_ends(
        output.start_logits[:, :tokens].numpy(),
        output.end_logits[:, :tokens].numpy(),
        outside.numpy(),
        torch.ones(tokens, dtype=torch.int32).numpy(),
    )
    (found,) = find(folder, page(image))
    first, last = (encoded.word_ids(0)[int(each[0])] for each in (start, end))
    assert (found.start, found.end - 1) == (first, last)
    assert found.text == " ".join(WORDS[first : last + 1])
    assert found.score == pytest.approx(float(score[0]), rel=1e-3)


def test_the_image_counts(tiny: Tiny, image: Image.Image) -> None:
    (one,) = find(tiny("layoutlmv3"), page(image))
    (other,) = find(tiny("layoutlmv3"), page(Image.new("RGB", (40, 40))))
    assert one.score != other.score
    with pytest.raises(MissingFieldError, match=r"document.image.data is empty"):
        find(tiny("layoutlmv3"), page())


def test_an_impossible_answer(tiny: Tiny) -> None:
    found = find(tiny("layoutlm"), page(), top_k=100, handle_impossible_answer=True)
    assert [(each.start, each.end) for each in found if not each.text] == [(0, 0)]


async def test_donut(tiny: Tiny, image: Image.Image) -> None:
    folder = tiny("donut")
    model = t.VisionEncoderDecoderModel.from_pretrained(folder).eval()
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    images = t.DonutImageProcessorPil.from_pretrained(folder)
    prompt = f"<s_docvqa><s_question>{QUESTION}</s_question><s_answer>"
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    pixels = images(image, return_tensors="pt")["pixel_values"]
    found = model.generate(pixels, decoder_input_ids=ids, max_new_tokens=8)[0]
    new = tokenizer.convert_ids_to_tokens(found[ids.shape[1] :])
    options = {"max_new_tokens": 8}
    response = await infer(folder, "docvqa", image=png(image), prompt=QUESTION, options=options)
    # A random model does not write the token that ends an answer, so this is no answer.
    assert "</s_answer>" not in new
    assert [answer.text for answer in response.answers] == [""]


def test_donut_ends_its_answer(
    tiny: Tiny, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows the prompt up to the token that ends an answer; a random model writes none."""
    model = DocumentReader(spec_of(tiny("donut"), "docvqa"))
    written = f"<s_docvqa><s_question>{QUESTION}</s_question><s_answer> 5 a_b\n</s_answer></s><pad>"
    ids = model.processor(written, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    monkeypatch.setattr(model, "generate", lambda *_, **__: ids)
    request = pb.InferRequest(image=png(image), prompt=QUESTION)
    (answer,) = model.infer(request, model.options(), RUNNING).answers
    assert answer.text == "5 a_b"


@pytest.mark.parametrize(
    ("document", "error", "words"),
    [
        (pb.Document(), MissingFieldError, "words of an OCR"),
        (pb.Document(words=[pb.DocumentWord(text=" ")]), MissingFieldError, r"\[0\].text is empty"),
        (
            pb.Document(words=[pb.DocumentWord(text="a", box=[0.0])]),
            InvalidArgumentError,
            "has 1 numbers; it must have 4",
        ),
        *[
            (
                pb.Document(words=[pb.DocumentWord(text="a", box=box)]),
                OutOfRangeError,
                "from 0 to 1",
            )
            for box in ([0, 0, 1, 2], [0.5, 0, 0.4, 1], [math.nan, 0, 1, 1], [-0.1, 0, 1, 1])
        ],
    ],
)
def test_pages_that_are_refused(
    tiny: Tiny, document: pb.Document, error: type[ServiceError], words: str
) -> None:
    with pytest.raises(error, match=words):
        find(tiny("layoutlm"), document)


def test_another_image_encoder_reads_no_pages(tiny: Tiny, tmp_path: Path) -> None:
    change_json(
        tmp_path / "config.json",
        model_type="vision-encoder-decoder",
        encoder={"model_type": "vit"},
        decoder={"model_type": "trocr"},
    )
    with pytest.raises(InvalidModelError, match="the encoder of this one is vit"):
        DocumentReader(spec_of(tmp_path, "docvqa"))
