"""Masks of texts, held against transformers' own pipeline."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from ml import transformers_pb2 as pb
from shared.errors import InternalError, InvalidArgumentError, InvalidModelError
from tests.support.text_pipeline import Tiny, infer, spec_of
from tests.support.tiny_parts import bytes_tokenizer
from text_svc.worker.pipelines.fill_mask import MAX_MASKS, MaskFiller, MaskOptions

RUNNING = threading.Event()
TEXT = "a photo of a [MASK] on the red sofa"


def fill(folder: Path, text: str, labels: list[str] | None = None, top_k: int = 5) -> list[Any]:
    model = MaskFiller(spec_of(folder, "fill-mask"))
    request = pb.InferRequest(text=text, labels=labels or [])
    masks = model.infer(request, MaskOptions(top_k=top_k), RUNNING).masks
    return [[(c.token_id, c.score, c.text) for c in mask.candidates] for mask in masks]


def same(found: list[Any], expected: list[Any]) -> None:
    assert [(token, text) for token, _, text in found] == [
        (each["token"], each["token_str"]) for each in expected
    ]
    assert [score for _, score, _ in found] == pytest.approx(
        [each["score"] for each in expected], rel=1e-4
    )


def test_one_mask(tiny: Tiny) -> None:
    pipeline = t.pipeline("fill-mask", model=str(tiny("bert-mask")))
    (found,) = fill(tiny("bert-mask"), TEXT)
    same(found, pipeline(TEXT, top_k=5))
    assert len(found) == 5


def test_several_masks(tiny: Tiny) -> None:
    pipeline = t.pipeline("fill-mask", model=str(tiny("bert-mask")))
    text = f"[MASK] {TEXT} [MASK]"
    found = fill(tiny("bert-mask"), text, top_k=3)
    assert len(found) == 3
    for mask, expected in zip(found, pipeline(text, top_k=3), strict=True):
        same(mask, expected)


def test_some_words_alone_keep_their_scores(tiny: Tiny) -> None:
    pipeline = t.pipeline("fill-mask", model=str(tiny("bert-mask")))
    words = ["a", "b", "c", "b"]
    (found,) = fill(tiny("bert-mask"), TEXT, words)
    same(found, pipeline(TEXT, targets=words))
    assert len(found) == 3


def test_what_is_refused(tiny: Tiny) -> None:
    folder = tiny("bert-mask")
    with pytest.raises(InvalidArgumentError, match=r"text has no \[MASK\]"):
        fill(folder, "a photo <mask>")
    with pytest.raises(InvalidArgumentError, match="the model's limit is 128"):
        fill(folder, TEXT + " x" * 200)
    with pytest.raises(InvalidArgumentError, match=f"{MAX_MASKS + 1} masks; the limit is"):
        fill(folder, "[MASK]" * (MAX_MASKS + 1))
    with pytest.raises(InvalidArgumentError, match=r"labels\[1\] is 'zebra', which is not one"):
        fill(folder, TEXT, ["a", "zebra"])


def test_a_tokenizer_without_a_mask(tiny: Tiny, tmp_path: Path) -> None:
    model = t.BertForMaskedLM.from_pretrained(tiny("bert-mask"))
    model.save_pretrained(tmp_path)
    core = bytes_tokenizer(["[PAD]", "[UNK]"])
    t.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]").save_pretrained(tmp_path)
    with pytest.raises(InvalidModelError, match="has no mask token"):
        MaskFiller(spec_of(tmp_path, "fill-mask"))


def test_scores_that_are_no_numbers_are_an_error(tiny: Tiny) -> None:
    model = MaskFiller(spec_of(tiny("bert-mask"), "fill-mask"))
    with torch.no_grad():
        model.model.get_output_embeddings().bias.fill_(torch.nan)
    with pytest.raises(InternalError, match="not finite numbers"):
        model.infer(pb.InferRequest(text=TEXT), MaskOptions(), RUNNING)


async def test_through_infer(tiny: Tiny) -> None:
    response = await infer(tiny("bert-mask"), "fill-mask", text=TEXT, options={"top_k": 2})
    assert len(response.masks[0].candidates) == 2
