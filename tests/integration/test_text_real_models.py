"""Real models of several kinds through text_svc: fetched, inspected, loaded and called."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ml import transformers_pb2 as pb
from tests.support.folders import MakeFolder
from tests.support.optional_models import require_asset
from tests.support.originals import OriginalEncoder
from tests.support.text_service import READY, TextClient, TextService, text_service

EMBEDDER = "bge-small-en-v1.5"
TEXTS = ["hello world", "the tide reached the harbour wall " * 9, "Ships in fog", "Zoë, 日本"]
# What 8 bits of the original's activations move a component of its vectors by, at most.
EIGHT_BITS = 0.03


@pytest.fixture(scope="module")
def service(models: Path, module_folder: MakeFolder) -> Iterator[TextService]:
    with text_service(models / "text", module_folder("service")) as running:
        yield running


@pytest.fixture
async def client(service: TextService) -> AsyncIterator[TextClient]:
    async with service.client() as connected:
        yield connected


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


async def test_vectors_of_the_first_token(client: TextClient, models: Path) -> None:
    folder = require_asset(models, EMBEDDER)
    original = OriginalEncoder(models, EMBEDDER)
    model_id = str(folder.relative_to(models / "text"))
    _, model = await client.load(model_id, "feature-extraction", engine="openvino")
    assert (model.state, model.engine) == (READY, "openvino")
    request = pb.GenerateEmbeddingsRequest(texts=TEXTS, model=model_id)
    answer = await client.text.GenerateEmbeddings(request)
    await client.unload(model_id)
    vectors = np.array([each.values for each in answer.embeddings])
    wanted = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=True):
        states = original.output(text)
        np.testing.assert_allclose(vector, unit(states[0]), atol=EIGHT_BITS)
        # The pooling that its files do not ask for would be seen.
        assert np.abs(vector - unit(states.mean(axis=0))).max() > EIGHT_BITS


async def test_a_reranker(client: TextClient, models: Path) -> None:
    model_id = "cross-encoder/ms-marco-MiniLM-L-12-v2"
    require_asset(models, "ms-marco-MiniLM-L-12-v2")
    await client.load(model_id, "reranking")
    documents = [
        "Paris is in France.",
        "The tide reached the wall.",
        "Berlin has about 3.7 million people.",
    ]
    ranking = pb.Ranking(query="How many people live in Berlin?", documents=documents)
    answer = await client.text.Infer(pb.InferRequest(model=model_id, ranking=ranking))
    await client.unload(model_id)
    assert [document.index for document in answer.documents] == [2, 0, 1]


async def test_a_voice(client: TextClient, models: Path) -> None:
    model_id = "rhasspy/en_US-joe-medium"
    require_asset(models, "en_US-joe-medium")
    await client.load(model_id, "text-to-speech")
    request = pb.InferRequest(model=model_id, text="hɛlˈoʊ.", options={"seed": "1"})
    first, again = [await client.text.Infer(request) for _ in range(2)]
    await client.unload(model_id)
    wave = np.frombuffer(first.audio.data, "<f4")
    assert 0.3 < len(wave) / first.audio.rate < 1.5
    assert 0.01 < wave.std() < 0.5
    assert again.audio.data == first.audio.data
