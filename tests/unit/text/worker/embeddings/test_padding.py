"""Models whose vectors padding changes: texts of different length do not share a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ml import transformers_pb2 as pb
from tests.support.folders import MakeFolder
from tests.support.text_pipeline import serve, spec_of
from tests.support.tiny_parts import SMALL, bert_tokenizer, save, widen
from text_svc.convert.encoder import convert
from text_svc.convert.refused import RefusedError
from text_svc.formats.recipe import Recipe
from text_svc.torch_models.padding import padding_changes
from text_svc.torch_models.sentence_encoder import SentenceEncoder, load_module

TEXTS = ["a cat", "hello world what does the image describe ?", "music", "a b c d e " * 5, "a dog"]


def _model(folder: Path, kind: Any, config: Any) -> Path:
    torch.manual_seed(0)
    tokenizer = bert_tokenizer()
    model = kind(config(vocab_size=len(tokenizer), embedding_size=32, **SMALL)).eval()
    widen(model)
    save(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="module")
def convbert(module_folder: MakeFolder) -> Path:
    """Its convolutions reach from a text into the padding beside it."""
    folder = module_folder("models") / "convbert"
    return _model(folder, transformers.ConvBertModel, transformers.ConvBertConfig)


def _module(folder: Path) -> SentenceEncoder:
    return load_module(folder, Recipe(), dtype=torch.float32)


def test_padding_is_tried(convbert: Path, tmp_path: Path) -> None:
    assert padding_changes(_module(convbert))
    bert = _model(tmp_path / "bert", transformers.ElectraModel, transformers.ElectraConfig)
    assert not padding_changes(_module(bert))


async def test_texts_in_one_call_have_the_vectors_that_they_have_alone(convbert: Path) -> None:
    model = transformers.AutoModel.from_pretrained(convbert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(convbert)
    async with serve(spec_of(convbert, "embedding")) as stub:
        answer = await stub.GenerateEmbeddings(pb.GenerateEmbeddingsRequest(texts=TEXTS))
    for text, embedding in zip(TEXTS, answer.embeddings, strict=True):
        with torch.inference_mode():
            hidden = model(**tokenizer(text.strip(), return_tensors="pt")).last_hidden_state[0]
        expected = torch.nn.functional.normalize(hidden.mean(0), dim=-1).tolist()
        assert list(embedding.values) == pytest.approx(expected, abs=1e-5), text


def test_openvino_does_not_take_them(convbert: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="padding changes its vectors"):
        convert(convbert, tmp_path, "float")
