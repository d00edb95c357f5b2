"""Revisions of a model: asked for on the wire, kept apart, and known to be confirmed or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ml import model_management_pb2 as pb
from shared.files.client import ModelFiles
from shared.model_ids import ModelId, at_revision
from tests.support.providers import Context, Provider, chunks, old
from tests.unit.shared.files.conftest import KEY, MODEL, NAME

V1, V2 = (at_revision(ModelId(MODEL), revision) for revision in ("v1", "refs/pr/2"))


async def with_revisions(
    provider: Provider, request: pb.ModelFileRequest, content: bytes, context: Context
) -> AsyncIterator[pb.ModelFileChunk]:
    """A provider that knows the field: its content is of the revision, and it says so."""
    sent = chunks(content + request.revision.encode(), request.offset)
    sent[0].revision = request.revision
    for chunk in sent:
        yield chunk


@pytest.fixture(autouse=True)
def small(source: Provider) -> None:
    source.files = {KEY: b"content "}
    source.usual = with_revisions


async def test_each_revision_is_fetched_and_kept_apart(files: ModelFiles, source: Provider) -> None:
    for model, content in ((MODEL, b""), (V1, b"v1"), (V2, b"refs/pr/2"), (MODEL, b"")):
        path = await files.fetch(ModelId(model), NAME)
        assert path.read_bytes() == b"content " + content
        assert await files.is_confirmed(ModelId(model))
    assert {(request.model_id, request.revision) for request in source.requests} == {
        *((MODEL, ""), (MODEL, "v1"), (MODEL, "refs/pr/2"))
    }
    assert len({files.folder(ModelId(model)) for model in (MODEL, V1, V2)}) == 3


async def test_a_new_file_of_one_revision_leaves_the_others(
    files: ModelFiles, source: Provider
) -> None:
    for model in (V1, V2):
        await files.fetch(model, NAME)
    source.files = {KEY: b"longer content "}
    await files.refresh(V1)
    assert (files.folder(V1) / NAME).read_bytes() == b"longer content v1"
    assert (files.folder(V2) / NAME).read_bytes() == b"content refs/pr/2"


async def test_a_provider_without_revisions_confirms_none(
    files: ModelFiles, source: Provider
) -> None:
    source.usual = old
    await files.fetch(V1, NAME)
    assert not await files.is_confirmed(V1)
    async with files.open(V1, NAME) as reader:
        assert reader.revision == ""


async def test_what_was_confirmed_is_known_after_a_restart(
    source: Provider, tmp_path: Path
) -> None:
    for _ in range(2):
        async with ModelFiles(source.address, tmp_path) as files:
            await files.fetch(V1, NAME)
            assert await files.is_confirmed(V1)
            async with files.open(V1, NAME) as reader:
                assert reader.revision == "v1"
