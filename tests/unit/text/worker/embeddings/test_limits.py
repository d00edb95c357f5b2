"""Texts of any length, for models whose limit stands nowhere in their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from ml import transformers_pb2 as pb
from tests.support.text_pipeline import Tiny, serve, spec_of
from text_svc.convert import encoder

TEXTS = ["a cat", "the price of apples in paris " * 30]


@pytest.mark.parametrize("engine", ["transformers", "openvino"])
async def test_positions_that_count_from_the_padding_token(
    tiny: Tiny, tmp_path: Path, engine: str
) -> None:
    folder, fields = tiny("roberta"), {}
    if engine == "openvino":
        manifest = encoder.convert(folder, tmp_path, "float")
        manifest.write(tmp_path)
        assert manifest.context == 39
        fields = {"engine": "openvino", "converted": tmp_path}
    async with serve(spec_of(folder, "embeddings", **fields)) as stub:
        answer = await stub.GenerateEmbeddings(pb.GenerateEmbeddingsRequest(texts=TEXTS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.RobertaModel.from_pretrained(folder).eval()
    for text, vector in zip(TEXTS, answer.embeddings, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=39, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**inputs).last_hidden_state[0].mean(0)
        wanted = torch.nn.functional.normalize(mean, dim=0).numpy()
        assert np.abs(np.array(vector.values) - wanted).max() < 1e-5
