"""The pipeline type: named, or given by the architecture or by config.json."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from model_mgmt_svc.resolve import Asked, resolve
from shared.errors import (
    InvalidModelError,
    ModelNotFoundError,
    ProviderUnavailableError,
    UnknownPipelineError,
)
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from shared.pipelines import accepted_names, find_pipeline
from tests.support.providers import Provider

MODEL = "org/name"
LLAMA = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()


@pytest.fixture
async def source() -> AsyncIterator[Provider]:
    async with Provider({f"{MODEL}/config.json": LLAMA}).running() as provider:
        yield provider


@pytest.fixture
async def files(source: Provider, tmp_path: Path) -> AsyncIterator[ModelFiles]:
    async with ModelFiles(source.address, tmp_path) as provider:
        yield provider


@pytest.mark.parametrize(
    ("pipeline_type", "architecture", "expected"),
    [
        ("feature-extraction", "LlamaForCausalLM", "feature-extraction"),
        ("Text_Generation", "", "text-generation"),
        ("chat", "", "text-generation"),
        ("", "BertModel", "feature-extraction"),
        ("", "LlamaForCausalLM", "text-generation"),
        ("", "", "text-generation"),
        (" ", "llama", "text-generation"),
    ],
)
async def test_the_first_that_says_something_counts(
    files: ModelFiles, pipeline_type: str, architecture: str, expected: str
) -> None:
    pipeline = (await resolve(files, MODEL, Asked(pipeline_type, architecture))).pipeline
    assert pipeline.name == expected


async def test_an_unknown_name_is_refused_with_the_known_ones(
    files: ModelFiles, source: Provider
) -> None:
    with pytest.raises(UnknownPipelineError) as caught:
        await resolve(files, MODEL, Asked("time-travel", "LlamaForCausalLM"))
    assert accepted_names() in caught.value.message
    assert caught.value.field == "pipeline_type"
    assert not source.requests


@pytest.mark.parametrize(
    "config",
    [b"{}", b"[]", b'{"architectures": null}', b'{"architectures": ["NoSuchThing", 3]}'],
)
async def test_a_config_that_says_nothing(
    files: ModelFiles, source: Provider, config: bytes
) -> None:
    source.files[f"{MODEL}/config.json"] = config
    with pytest.raises(UnknownPipelineError) as caught:
        await resolve(files, MODEL, Asked())
    assert accepted_names() in caught.value.message


async def test_a_config_that_is_broken_or_missing(files: ModelFiles, source: Provider) -> None:
    source.files[f"{MODEL}/config.json"] = b"{"
    with pytest.raises(InvalidModelError, match=r"config\.json is not valid JSON"):
        await resolve(files, MODEL, Asked())
    with pytest.raises(ModelNotFoundError):
        await resolve(files, "org/other", Asked())


MODULES = [{"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}]
CLIP = [{"type": "sentence_transformers.models.CLIPModel", "path": "0_CLIPModel"}]


@pytest.mark.parametrize(
    ("modules", "model_type", "expected"),
    [
        (MODULES, None, "feature-extraction"),
        (MODULES, "SentenceTransformer", "feature-extraction"),
        (MODULES, "CrossEncoder", "reranking"),
        (CLIP, None, "zero-shot-image-classification"),
    ],
)
@pytest.mark.parametrize("config", [LLAMA, None])
async def test_a_model_of_sentence_transformers(
    files: ModelFiles,
    source: Provider,
    modules: list[dict[str, str]],
    model_type: str | None,
    expected: str,
    config: bytes | None,
) -> None:
    source.files = {f"{MODEL}/modules.json": json.dumps(modules).encode()}
    if model_type:
        own = json.dumps({"model_type": model_type}).encode()
        source.files[f"{MODEL}/config_sentence_transformers.json"] = own
    if config:
        source.files[f"{MODEL}/config.json"] = config
    assert (await resolve(files, MODEL, Asked())).pipeline.name == find_pipeline(expected).name


async def test_a_named_type_counts_while_the_provider_is_away(tmp_path: Path) -> None:
    """The service that loads the model may have its files."""
    limits = FetchLimits(patience_seconds=0.1)
    async with ModelFiles("127.0.0.1:1", tmp_path, limits=limits) as files:
        found = await resolve(files, MODEL, Asked("text-generation", "llava"))
        assert found.pipeline.name == "visual-language"
        assert "the file provider, which has the model's own, is not reachable" in found.why
        with pytest.raises(ProviderUnavailableError):
            await resolve(files, MODEL, Asked())
