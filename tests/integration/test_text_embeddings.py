"""Embeddings and Infer through Envoy, with the real model."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from ml import model_management_pb2 as mm
from ml import model_management_pb2_grpc as mm_grpc
from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc as pb_grpc
from tests.support.stack import EMBEDDER, MODELS, Stack

TEXTS = ["hello world", "the tide reached the harbour wall " * 9, "", "ships in fog", "nul\0x"]


@pytest.fixture
def channel(stack: Stack):
    with stack.channel() as channel:
        mm_grpc.ModelManagementServiceStub(channel).LoadModel(
            mm.LoadModelRequest(model_id=EMBEDDER, pipeline_type="feature-extraction")
        )
        yield channel


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(MODELS / "text" / EMBEDDER), device="cpu").encode(TEXTS)


def test_vectors_are_those_of_sentence_transformers(
    channel: grpc.Channel, reference: np.ndarray
) -> None:
    request = pb.GenerateEmbeddingsRequest(texts=TEXTS, model=EMBEDDER)
    answer = pb_grpc.TransformersServiceStub(channel).GenerateEmbeddings(request)
    got = np.array([each.values for each in answer.embeddings])
    assert np.abs(got - reference).max() < 1e-5
    assert answer.tokens > len(TEXTS)


def test_a_stream_of_ten_thousand_texts(channel: grpc.Channel, reference: np.ndarray) -> None:
    texts = ["hello world"] * 10_000
    stub = pb_grpc.TransformersServiceStub(channel)
    with pytest.raises(grpc.RpcError, match="10000 texts; the limit is") as caught:
        stub.GenerateEmbeddings(pb.GenerateEmbeddingsRequest(texts=texts, model=EMBEDDER))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    chunks = [texts[start : start + 2000] for start in range(0, len(texts), 2000)]
    requests = (pb.GenerateEmbeddingsRequest(texts=chunk, model=EMBEDDER) for chunk in chunks)
    count = 0
    for answer in stub.StreamEmbeddings(requests):
        assert answer.ByteSize() < 4 << 20, "what a client of tonic takes"
        assert answer.first_text == count
        count += len(answer.embeddings)
    assert count == len(texts)
    assert np.abs(np.array(answer.embeddings[-1].values) - reference[0]).max() < 1e-5


def test_infer_of_an_embedding_model_says_what_it_answers(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError, match="answers GenerateEmbeddings") as caught:
        pb_grpc.TransformersServiceStub(channel).Infer(
            pb.InferRequest(model=EMBEDDER, text="hello")
        )
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
