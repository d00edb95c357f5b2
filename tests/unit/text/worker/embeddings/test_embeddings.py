"""Sentence vectors: the model's own recipe, held against sentence-transformers, on both engines."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import openvino as ov
import pytest
import torch
from safetensors.numpy import save_file

from ml import transformers_pb2 as pb
from shared.errors import InvalidModelError
from tests.support import tiny_models
from tests.support.embeddings import converted, embed, expected
from tests.support.text_pipeline import Tiny, serve, spec_of
from text_svc.convert import encoder
from text_svc.convert.refused import RefusedError
from text_svc.formats.manifest import Manifest
from text_svc.formats.recipe import (
    POOLINGS,
    read_recipe,
)
from text_svc.torch_models.sentence_encoder import SentenceEncoder
from text_svc.worker.embeddings.batcher import MicroBatcher
from text_svc.worker.embeddings.metrics import EmbeddingMetrics
from text_svc.worker.embeddings.openvino import (
    MODEL,
    OpenVinoEncoder,
)
from text_svc.worker.embeddings.service import response

TEXTS = ["hello world", "a cat", "", "  music and history in paris  ", "a b c d e " * 40, "nul\0x"]


def sentence_model(folder: Path, config: Mapping[str, Any], *, dense: bool = False) -> Path:
    """A tiny BERT with sentence-transformers' files around it."""
    tiny_models.build("bert", folder)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if dense:
        kinds.append(("Dense", "2_Dense"))
        (folder / "2_Dense").mkdir()
        shape = {"in_features": 32, "out_features": 8, "bias": True}
        activation = {"activation_function": "torch.nn.modules.activation.Tanh"}
        (folder / "2_Dense" / "config.json").write_text(json.dumps(shape | activation))
        chance = np.random.default_rng(0)
        weights = {
            "linear.weight": chance.normal(0, 1, (8, 32)).astype(np.float32),
            "linear.bias": chance.normal(0, 1, 8).astype(np.float32),
        }
        save_file(weights, folder / "2_Dense" / "model.safetensors")
    kinds.append(("Normalize", "3_Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False, **config}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


POOLING_CONFIGS = {
    **{name: {key: True} for name, key in POOLINGS.items()},
    "cls and mean": {POOLINGS["cls"]: True, POOLINGS["mean"]: True},
}


@pytest.mark.parametrize("pooling", POOLING_CONFIGS)
@pytest.mark.parametrize("engine", ["transformers", "openvino"])
async def test_poolings(tmp_path: Path, pooling: str, engine: str) -> None:
    folder = sentence_model(tmp_path / "model", POOLING_CONFIGS[pooling])
    fields = converted(folder) if engine == "openvino" else {}
    async with serve(spec_of(folder, "embeddings", **fields)) as stub:
        got = await embed(stub, TEXTS)
    assert np.abs(got - expected(folder, TEXTS)).max() < 1e-5


@pytest.mark.parametrize("engine", ["transformers", "openvino"])
async def test_dense_layer_and_dimensions(tmp_path: Path, engine: str) -> None:
    folder = sentence_model(tmp_path / "model", POOLING_CONFIGS["mean"], dense=True)
    fields = converted(folder) if engine == "openvino" else {}
    reference = expected(folder, TEXTS)
    async with serve(spec_of(folder, "embeddings", **fields)) as stub:
        got = await embed(stub, TEXTS)
        short = await embed(stub, TEXTS, dimensions=3)
    assert got.shape == (len(TEXTS), 8)
    assert np.abs(got - reference).max() < 1e-5
    cut = reference[:, :3] / np.linalg.norm(reference[:, :3], axis=1, keepdims=True)
    assert np.abs(short - cut).max() < 1e-5


async def test_prompts(tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "model", POOLING_CONFIGS["mean"])
    prompts = {"query": "a photo of ", "document": ""}
    config = {"prompts": prompts, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    async with serve(spec_of(folder, "embeddings")) as stub:
        default = await embed(stub, TEXTS[:2])
        document = await embed(stub, TEXTS[:2], prompt_name="document")
        with pytest.raises(grpc.aio.AioRpcError, match="it has document, query") as caught:
            await embed(stub, TEXTS[:2], prompt_name="nobody's")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert np.abs(default - expected(folder, TEXTS[:2])).max() < 1e-5
    assert np.abs(document - expected(folder, TEXTS[:2], prompt_name="document")).max() < 1e-5
    assert np.abs(default - document).max() > 1e-3


async def test_windows_of_attention_survive_the_conversion(tiny: Tiny, tmp_path: Path) -> None:
    folder, target = tiny("modernbert"), tmp_path / "converted"
    target.mkdir()
    encoder.convert(folder, target, "float").write(target)
    texts = ["a photo of the sea " * times for times in (1, 5, 40)]
    spec = spec_of(folder, "embeddings", engine="openvino", converted=target)
    async with serve(spec) as stub:
        got = await embed(stub, texts)
    reference = expected(folder, texts)
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    assert np.abs(got - reference).max() < 1e-5


def test_a_window_that_the_graph_has_lost_is_found(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(module: SentenceEncoder, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = (1.0 - attention_mask[:, None, None, :].float()) * -1e9
        return mask.expand(-1, 1, attention_mask.shape[1], -1)

    traced = encoder._trace

    def trace(module: SentenceEncoder, kind: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(SentenceEncoder, "_mask", without)
            return traced(module, kind)

    monkeypatch.setattr(encoder, "_trace", trace)
    with pytest.raises(RefusedError, match="differ"):
        encoder.convert(tiny("modernbert"), tmp_path, "float")


async def test_bfloat16_and_int8_stay_near(tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "model", POOLING_CONFIGS["mean"])
    reference = expected(folder, TEXTS)
    for dtype in ("bfloat16", "int8"):
        fields = converted(folder, "int8" if dtype == "int8" else "float")
        async with serve(spec_of(folder, "embeddings", {"dtype": dtype}, **fields)) as stub:
            got = await embed(stub, TEXTS)
        assert (got * reference).sum(1).min() > 0.98, dtype
        # A processor without bfloat16 computes in float32 instead.
        exact = dtype == "bfloat16" and "BF16" not in ov.Core().get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        )
        difference = np.abs(got - reference).max()
        assert (difference < 1e-5) if exact else (difference > 1e-6), f"{dtype} was not used"


def test_what_does_not_convert_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, target = tiny_models.build("bert", tmp_path / "model"), tmp_path / "target"
    target.mkdir()
    monkeypatch.setattr(encoder, "MAX_DIFFERENCE", 0.0)  # no graph is as exact as that
    with pytest.raises(RefusedError, match="differ"):
        encoder.convert(folder, target, "float")
    assert Manifest.read(target) is None


@pytest.mark.parametrize(
    ("modules", "config", "words"),
    [
        (["Transformer", "CNN", "Pooling"], {}, "it must list Transformer, Pooling"),
        (["Pooling", "Transformer"], {}, "it must list Transformer, Pooling"),
        (["Transformer", "Pooling"], {"pooling_mode_strange": True}, "pooling_mode_strange"),
        (["Transformer", "Pooling"], {"pooling_mode_mean_tokens": False}, "none is not supported"),
        (None, {}, "is not a list"),
    ],
)
def test_recipes_that_are_refused(
    tmp_path: Path, modules: list[str] | None, config: dict[str, bool], words: str
) -> None:
    content: Any = modules and [
        {"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in modules
    ]
    (tmp_path / "modules.json").write_text(json.dumps(content or {"no": "list"}))
    (tmp_path / "Pooling").mkdir()
    (tmp_path / "Pooling" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModelError, match=words):
        read_recipe(tmp_path)


async def test_limits_of_a_call(tmp_path: Path) -> None:
    folder = tiny_models.build("bert", tmp_path / "model")
    limits = {"max_texts": 10, "max_call_tokens": 60, "max_prompt_bytes": 1000}
    bad: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
        ({"texts": []}, grpc.StatusCode.INVALID_ARGUMENT, "texts is empty"),
        ({"texts": ["x"] * 11}, grpc.StatusCode.RESOURCE_EXHAUSTED, "limit is 10"),
        ({"texts": ["x" * 1001]}, grpc.StatusCode.RESOURCE_EXHAUSTED, "limit is 1000"),
        ({"texts": ["a b c d e f g"] * 9}, grpc.StatusCode.RESOURCE_EXHAUSTED, "limit is 60"),
        ({"texts": ["x"], "dimensions": 33}, grpc.StatusCode.INVALID_ARGUMENT, "1 to 32"),
        ({"texts": ["x"], "dimensions": -1}, grpc.StatusCode.INVALID_ARGUMENT, "1 to 32"),
    ]
    async with serve(spec_of(folder, "embeddings", **limits)) as stub:
        for fields, code, words in bad:
            with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
                await stub.GenerateEmbeddings(pb.GenerateEmbeddingsRequest(**fields))
            assert caught.value.code() is code, fields
        assert (await embed(stub, ["x", ""])).shape == (2, 32), "it serves on"


@pytest.mark.parametrize("engine", ["transformers", "openvino"])
async def test_a_text_without_tokens_is_refused(tmp_path: Path, engine: str) -> None:
    folder = tiny_models.build("bert", tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    fields = converted(folder) if engine == "openvino" else {}
    async with serve(spec_of(folder, "embeddings", **fields)) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match=r"texts\[1\] has no tokens") as caught:
            await embed(stub, ["a", "", "b"])
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await embed(stub, ["a", "b"])).shape == (2, 32)


async def test_a_batch_that_openvino_refuses_fails_its_caller(tmp_path: Path) -> None:
    fields = converted(tiny_models.build("bert", tmp_path / "model"))
    encoder = OpenVinoEncoder(fields["converted"] / MODEL, precision="f32", threads=2)
    metrics = EmbeddingMetrics("refused")
    batcher = MicroBatcher(encoder, pad_token=0, max_waiting=9, metrics=metrics)
    async with asyncio.timeout(60):
        for _ in range(2 * encoder.streams):  # no place in the queue is lost
            with pytest.raises(RuntimeError):
                await batcher.embed([[]])
        assert (await batcher.embed([[5, 6]])).shape == (1, 32)
    await asyncio.to_thread(batcher.close)


async def test_stream_in_order_and_its_first_error(tmp_path: Path) -> None:
    folder = tiny_models.build("bert", tmp_path / "model")
    texts = [f"{word} {number}" for number in range(20) for word in ("cat", "dog " * 30)]
    chunks = [texts[start : start + 7] for start in range(0, len(texts), 7)]
    async with serve(spec_of(folder, "embeddings")) as stub:
        whole = await embed(stub, texts)
        requests = [pb.GenerateEmbeddingsRequest(texts=chunk) for chunk in chunks]
        answers = [answer async for answer in stub.StreamEmbeddings(iter(requests))]
        rows = [each.values for answer in answers for each in answer.embeddings]
        assert np.abs(np.array(rows) - whole).max() < 1e-6
        assert [answer.first_text for answer in answers] == list(range(0, len(texts), 7))

        broken = stub.StreamEmbeddings(iter([requests[0], pb.GenerateEmbeddingsRequest()]))
        assert len((await broken.read()).embeddings) == 7
        with pytest.raises(grpc.aio.AioRpcError, match="texts is empty"):
            await broken.read()


async def test_stream_answers_before_the_next_request(tmp_path: Path) -> None:
    folder = tiny_models.build("bert", tmp_path / "model")
    async with serve(spec_of(folder, "embeddings")) as stub:
        call = stub.StreamEmbeddings()
        for text in ("one", "two"):
            await call.write(pb.GenerateEmbeddingsRequest(texts=[text]))
            assert len((await call.read()).embeddings) == 1
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (2, 32), (2, 384), (1, 5000)])
def test_vectors_on_the_wire_are_protobufs_own(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    wanted = pb.GeneratedEmbeddingsResponse(
        embeddings=[pb.GeneratedEmbedding(values=row.tolist()) for row in vectors], tokens=5
    )
    assert response(vectors, tokens=5) == wanted
    assert response(vectors[:, ::-1], tokens=5) != wanted or shape[1] == 1


def test_the_conversion_warns_of_nothing_at_error_level(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, target = tiny_models.build("bert", tmp_path / "model"), tmp_path / "target"
    target.mkdir()
    with caplog.at_level(logging.ERROR):
        manifest = encoder.convert(folder, target, "float")
    assert not caplog.records
    assert manifest.context == 128, "the tokenizer's own limit"
    assert manifest.pad_token == 0
