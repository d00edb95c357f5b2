"""Spans of texts: offsets beside emojis, long texts, models without a padding token."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from ml import transformers_pb2 as pb
from shared.errors import InternalError
from tests.support.folders import MakeFolder
from tests.support.text_pipeline import Tiny, spec_of
from tests.support.tiny_parts import SMALL, bytes_tokenizer, save, widen
from text_svc.worker.pipelines.token_classification import TokenClassifier, TokenOptions

RUNNING = threading.Event()


def spans(folder: Path, text: str, **options: Any) -> list[pb.TextSpan]:
    model = TokenClassifier(spec_of(folder, "ner"))
    return list(model.infer(pb.InferRequest(text=text), TokenOptions(**options), RUNNING).spans)


@pytest.fixture(scope="module")
def decoder(module_folder: MakeFolder) -> Path:
    """A decoder of 48 positions whose tokenizer has no padding token."""
    folder = module_folder("decoder")
    core = bytes_tokenizer(["<s>", "</s>"])
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", model_max_length=48
    )
    names = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC"]))
    sizes = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 48}
    torch.manual_seed(0)
    config = t.Qwen2Config(
        vocab_size=len(tokenizer), id2label=names, bos_token_id=0, eos_token_id=1, **sizes
    )
    model = t.Qwen2ForTokenClassification(config)
    widen(model)
    save(folder, model, tokenizer)
    return folder


def test_offsets_count_code_points(tiny: Tiny) -> None:
    text = "👩‍👩‍👧 héllo 🎉 paris 𐍈 and music"
    found = spans(tiny("bert-ner"), text)
    assert found
    assert all(span.text == text[span.start : span.end] for span in found)
    pipeline = t.pipeline("token-classification", model=str(tiny("bert-ner")))
    expected = pipeline(text, aggregation_strategy="simple")
    assert [(each.start, each.end) for each in found] == [
        (each["start"], each["end"]) for each in expected
    ]


def test_a_long_text_of_a_model_without_a_padding_token(decoder: Path) -> None:
    text = "hello paris and music " * 20
    found = spans(decoder, text)
    assert found[-1].end > len(text) - 40
    assert all(span.text == text[span.start : span.end] for span in found)
    # What is found in the first window's first half is what is found in a short text.
    tokenizer = t.AutoTokenizer.from_pretrained(decoder)
    ends = [end for _, end in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
    cut = ends[47]
    short = [span for span in spans(decoder, text[:cut]) if span.end < ends[20]]
    assert short
    assert [(s.start, s.end, s.label) for s in found[: len(short)]] == [
        (s.start, s.end, s.label) for s in short
    ]


def test_scores_that_are_no_numbers_are_an_error(tiny: Tiny) -> None:
    model = TokenClassifier(spec_of(tiny("bert-ner"), "ner"))
    with torch.no_grad():
        model.model.classifier.bias.fill_(torch.nan)
    with pytest.raises(InternalError, match="not finite numbers"):
        model.infer(pb.InferRequest(text="paris"), TokenOptions(), RUNNING)
