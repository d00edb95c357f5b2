"""A model's folder from single files: what is asked for, what is followed, what is refused."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from shared.errors import (
    InvalidModelError,
    InvalidModelIdError,
    ModelFileNotFoundError,
    ModelNotFoundError,
    ProviderUnavailableError,
)
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from shared.files.limits import FileLimits
from shared.files.snapshot import (
    MAX_SHARDS,
    OPTIONAL_FILES,
    OTHER_FORMS,
    read_json,
    snapshot,
)
from shared.model_ids import ModelId, parse_model_id, with_file
from tests.support.providers import Context, Provider, honest

MODEL = "org/name"
WEIGHTS = random.Random(2).randbytes(300_000)
INDEX = "model.safetensors.index.json"


@pytest.fixture
async def source() -> AsyncIterator[Provider]:
    async with Provider().running() as provider:
        yield provider


@pytest.fixture
async def files(source: Provider, tmp_path: Path) -> AsyncIterator[ModelFiles]:
    limits = FetchLimits(attempts=2, patience_seconds=0, backoff_seconds=0.01)
    async with ModelFiles(source.address, tmp_path, limits=limits) as provider:
        yield provider


def publish(source: Provider, **contents: object) -> dict[str, bytes]:
    """Serves files of the model: bytes as they are, the rest as JSON. "__" in a name is a slash."""
    published = {
        name: value if isinstance(value, bytes) else json.dumps(value).encode()
        for name, value in contents.items()
    }
    source.files |= {f"{MODEL}/{name}": content for name, content in published.items()}
    return published


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def test_what_is_there_is_in_the_folder_and_nothing_else(
    files: ModelFiles, source: Provider
) -> None:
    names = ("config.json", "model.safetensors", *OPTIONAL_FILES)
    published = publish(source, **{name: f"content of {name}".encode() for name in names})
    published |= publish(source, **{"modules.json": []})
    source.files[f"{MODEL}/pytorch_model.bin"] = b"pickle"
    assert read_folder(await snapshot(files, MODEL)) == published


async def test_a_model_that_is_here_gets_what_was_published_since(
    files: ModelFiles, source: Provider
) -> None:
    published = publish(source, **{"config.json": {}, "model.safetensors": WEIGHTS})
    await snapshot(files, ModelId(MODEL))
    published |= publish(source, **{"vocab.txt": b"a"})
    source.requests.clear()
    assert read_folder(await snapshot(files, ModelId(MODEL))) == published
    asked = Counter(request.file_path for request in source.requests)
    # To see what there is, then to fetch it; of the others, once.
    assert asked.pop("vocab.txt") == 2
    assert asked.keys() >= set(OPTIONAL_FILES) - {"vocab.txt"}
    assert set(asked.values()) == {1}
    assert not [path for path in (files.cache_dir / ".fetch").iterdir() if path.suffix != ".json"]


async def test_a_path_of_the_model_means_the_model(files: ModelFiles, source: Provider) -> None:
    published = publish(source, **{"config.json": {}, "model.safetensors": WEIGHTS})
    folder = await snapshot(files, parse_model_id(f"models/{MODEL}/model.safetensors"))
    assert folder == files.folder(MODEL)
    assert read_folder(folder) == published


async def test_shards_are_followed_and_progress_is_summed(
    files: ModelFiles, source: Provider
) -> None:
    shards = {f"model-{i:05}-of-00003.safetensors": WEIGHTS[:i] for i in (1, 1000, 300_000)}
    index = {"weight_map": {f"layer.{i}": name for i, name in enumerate([*shards] * 5)}}
    published = publish(source, **{"config.json": {"a": 1}, INDEX: index}, **shards)
    seen: list[tuple[int, int]] = []
    folder = await snapshot(files, MODEL, lambda done, total: seen.append((done, total)))
    assert read_folder(folder) == published
    whole = sum(len(content) for content in published.values())
    assert seen[-1] == (whole, whole)
    assert all(done <= total or total == 0 for done, total in seen)


async def test_as_many_shards_come_at_once_as_the_limit_says(
    source: Provider, tmp_path: Path
) -> None:
    shards = {f"{i}.safetensors": bytes([i]) * 10 for i in range(7)}
    index = {"weight_map": {name: name for name in shards}}
    publish(source, **{"config.json": {}, INDEX: index}, **shards)
    running, most, together = 0, 0, asyncio.Event()

    async def counted(
        provider: Provider, request: pb.ModelFileRequest, content: bytes, context: Context
    ) -> AsyncIterator[pb.ModelFileChunk]:
        nonlocal running, most
        is_shard = request.file_path in shards
        running += is_shard
        most = max(most, running)
        if running == 3:
            together.set()
        if is_shard:
            await together.wait()
        async for chunk in honest(provider, request, content, context):
            yield chunk
        running -= is_shard

    source.usual = counted
    limits = FetchLimits(patience_seconds=0, parallel=3)
    async with ModelFiles(source.address, tmp_path, limits=limits) as files:
        folder = await snapshot(files, ModelId(MODEL))
    assert most == 3
    assert all((folder / name).read_bytes() == content for name, content in shards.items())


async def test_folders_of_modules_are_followed(files: ModelFiles, source: Provider) -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    published = publish(
        source,
        **{
            "config.json": {},
            "model.safetensors": WEIGHTS,
            "modules.json": modules,
            "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
            "2_Dense/config.json": {"in_features": 8},
            "2_Dense/model.safetensors": WEIGHTS[:80],
        },
    )
    assert read_folder(await snapshot(files, MODEL)) == published


async def test_a_transformer_in_a_folder_of_its_own(files: ModelFiles, source: Provider) -> None:
    modules = [
        {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    index = {"weight_map": {"a": "a.safetensors", "b": "more/b.safetensors"}}
    published = publish(
        source,
        **{
            "modules.json": modules,
            "config_sentence_transformers.json": {"prompts": {}},
            "0_Transformer/config.json": {},
            f"0_Transformer/{INDEX}": index,
            "0_Transformer/a.safetensors": WEIGHTS,
            "0_Transformer/more/b.safetensors": WEIGHTS,
            "0_Transformer/tokenizer.json": {},
            "0_Transformer/sentence_roberta_config.json": {},
            "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        },
    )
    assert read_folder(await snapshot(files, MODEL)) == published


@pytest.mark.parametrize(
    ("path", "folder"), [("0_StaticEmbedding", "0_StaticEmbedding/"), (".", "")]
)
async def test_a_table_of_vectors_needs_no_config(
    files: ModelFiles, source: Provider, path: str, folder: str
) -> None:
    modules = [{"path": path, "type": "sentence_transformers.models.StaticEmbedding"}]
    names = {f"{folder}model.safetensors": WEIGHTS, f"{folder}tokenizer.json": {}}
    published = publish(source, **{"modules.json": modules, **names})
    assert read_folder(await snapshot(files, MODEL)) == published


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"adapter_config.json": {}}, r"no config\.json: it is an adapter \(PEFT\)"),
        ({"model_index.json": {}}, r"no config\.json: it is a pipeline of diffusers"),
        (
            {
                "modules.json": [
                    {"path": "0_W", "type": "sentence_transformers.models.WordEmbeddings"}
                ]
            },
            "begins with 'sentence_transformers.models.WordEmbeddings'; the models that are loaded",
        ),
        (
            {"modules.json": [{"path": "0_T", "type": "sentence_transformers.models.Transformer"}]},
            r"no 0_T/config\.json, where its modules\.json says that the transformer is",
        ),
        (
            {
                "modules.json": [
                    {"path": "0_T", "type": "sentence_transformers.models.Transformer"}
                ],
                "0_T/config.json": {},
            },
            r"neither 0_T/model\.safetensors nor 0_T/model\.safetensors\.index\.json: only",
        ),
    ],
)
async def test_a_layout_that_is_not_loaded_is_told_by_its_reason(
    files: ModelFiles, source: Provider, contents: dict[str, object], said: str
) -> None:
    publish(source, **contents)
    with pytest.raises(InvalidModelError, match=said):
        await snapshot(files, MODEL)


async def test_a_second_snapshot_fetches_nothing_again(files: ModelFiles, source: Provider) -> None:
    published = publish(source, **{"config.json": {}, "model.safetensors": WEIGHTS})
    await snapshot(files, MODEL)
    source.requests.clear()
    await snapshot(files, MODEL)
    asked = {request.file_path: request.offset for request in source.requests}
    for name, content in published.items():
        assert asked[name] == len(content)  # only whether it is still the same


async def test_an_unknown_model(files: ModelFiles, source: Provider) -> None:
    publish(source, **{"model.safetensors": WEIGHTS})
    with pytest.raises(ModelNotFoundError, match="no model 'org/name'"):
        await snapshot(files, MODEL)
    asked = ["config.json", "modules.json", *OTHER_FORMS]
    assert [request.file_path for request in source.requests] == asked
    with pytest.raises(InvalidModelIdError):
        await snapshot(files, parse_model_id("../name"))


async def test_a_model_without_safetensors(files: ModelFiles, source: Provider) -> None:
    publish(source, **{"config.json": {}, "pytorch_model.bin": b"pickle"})
    with pytest.raises(InvalidModelError, match="only safetensors"):
        await snapshot(files, MODEL)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        ([], "no weight_map"),
        ({}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": {"a": "../../secret.safetensors"}}, "must be relative"),
        ({"weight_map": {"a": "/etc/passwd"}}, "must be relative"),
        ({"weight_map": {"a": ""}}, "is empty"),
        ({"weight_map": {"a": 3}}, "not safetensors"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "not safetensors"),
        (
            {"weight_map": {"a": "gone.safetensors"}},
            r"lists 'gone\.safetensors', which the file provider does not have",
        ),
        (
            {"weight_map": {str(i): f"{i}.safetensors" for i in range(MAX_SHARDS + 1)}},
            f"{MAX_SHARDS + 1} of at most {MAX_SHARDS} files",
        ),
    ],
)
async def test_an_index_that_is_broken_or_hostile(
    files: ModelFiles, source: Provider, index: object, said: str
) -> None:
    publish(source, **{"config.json": {}, INDEX: index})
    with pytest.raises(InvalidModelError, match=said):
        await snapshot(files, MODEL)


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ({"path": "x"}, "not a list of modules"),
        ([{"idx": 0}], "not a list of modules"),
        (3, "not a list of modules"),
        ([{"path": "../../other"}], "must be relative"),
        ([{"path": str(i)} for i in range(40)], "40 of at most 32 modules"),
    ],
)
async def test_modules_that_are_broken_or_hostile(
    files: ModelFiles, source: Provider, modules: object, said: str
) -> None:
    publish(source, **{"config.json": {}, "model.safetensors": WEIGHTS, "modules.json": modules})
    with pytest.raises(InvalidModelError, match=said):
        await snapshot(files, MODEL)


async def test_a_provider_that_goes_away_is_told_by_itself(
    files: ModelFiles, source: Provider
) -> None:
    publish(source, **{"config.json": {}, "model.safetensors": WEIGHTS})

    async def away(provider, request, content, context):
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield

    await files.fetch(MODEL, "config.json")
    source.usual = away
    with pytest.raises(ProviderUnavailableError):  # not a group of errors
        await snapshot(files, MODEL)


async def test_json_over_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.files.snapshot.MAX_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text("[1, 2, 3, 4]")
    with pytest.raises(InvalidModelError, match=r"a\.json has more than 10 bytes"):
        await read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "limit"),
    [("config.json", 1000), ("tokenizer.json", 5000), ("chat_template.jinja", 1000)],
)
async def test_a_file_that_is_too_large_is_not_fetched(
    files: ModelFiles, source: Provider, name: str, limit: int
) -> None:
    publish(source, **{"config.json": {}, "model.safetensors": WEIGHTS, name: b" " * 900_000})
    with pytest.raises(InvalidModelError, match=f"{name} has 900000 bytes; the limit is {limit}"):
        await snapshot(files, MODEL, limits=FileLimits(1000, 5000))
    assert not (files.folder(MODEL) / name).exists()


async def test_weights_in_another_file_are_fetched_alone(
    files: ModelFiles, source: Provider
) -> None:
    publish(
        source,
        **{"config.json": {}, "model.safetensors": WEIGHTS, "fp16/small.safetensors": WEIGHTS[:9]},
    )
    small = with_file(ModelId(MODEL), "fp16/small.safetensors")
    folder = await snapshot(files, small, weights="fp16/small.safetensors")
    assert set(read_folder(folder)) == {"config.json", "fp16/small.safetensors"}
    assert folder != files.folder(MODEL)
    assert {request.model_id for request in source.requests} == {MODEL}
    with pytest.raises(ModelFileNotFoundError, match=r"none\.safetensors"):
        await snapshot(files, ModelId(MODEL), weights="none.safetensors")


async def test_an_index_with_another_name_is_followed(files: ModelFiles, source: Provider) -> None:
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    shards = {"fp16/1.safetensors": WEIGHTS[:1], "fp16/2.safetensors": WEIGHTS[:2]}
    name = "fp16/small.safetensors.index.json"
    published = publish(source, **{"config.json": {}, name: index}, **shards)
    assert read_folder(await snapshot(files, ModelId(MODEL), weights=name)) == published
