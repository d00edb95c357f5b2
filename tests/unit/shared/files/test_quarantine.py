"""Files that do not match their hash: kept aside, bounded, and never served."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

import pytest
from prometheus_client import REGISTRY

from ml import model_management_pb2 as pb
from shared.errors import ProviderFaultError
from shared.files.client import ModelFiles
from shared.files.quarantine import MAX_FILES, Quarantine
from shared.files.space import CacheSpace
from shared.model_ids import ModelId
from tests.support.providers import Context, Provider, chunks
from tests.unit.shared.files.conftest import CONTENT, MODEL, NAME

FILE = PurePosixPath(NAME)


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob(".quarantine/*.file"))


def record(file: Path) -> dict[str, object]:
    facts: dict[str, object] = json.loads(file.with_suffix(".json").read_text())
    return facts


def count() -> float:
    return REGISTRY.get_sample_value("model_cache_quarantined_total") or 0


async def lies(
    provider: Provider, request: pb.ModelFileRequest, content: bytes, context: Context
) -> AsyncIterator[pb.ModelFileChunk]:
    for chunk in chunks(content, request.offset, sha256="0" * 64):
        yield chunk


async def test_what_comes_with_another_hash_is_kept_with_the_reason(
    source: Provider, files: ModelFiles, caplog: pytest.LogCaptureFixture
) -> None:
    before = count()
    source.behaviours = [lies]
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ProviderFaultError, match="what came is kept aside"),
    ):
        await files.fetch(MODEL, NAME)
    [file] = kept(files.cache_dir)
    assert file.read_bytes() == CONTENT
    facts = record(file)
    assert facts.pop("time")
    assert facts == {
        "model": MODEL,
        "file": NAME,
        "expected": "0" * 64,
        "found": hashlib.sha256(CONTENT).hexdigest(),
        "size": len(CONTENT),
    }
    assert count() == before + 1
    assert "kept aside" in caplog.text
    # It is asked for again from the start, and never taken from there.
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    assert [request.offset for request in source.requests] == [0, 0]


async def test_a_damaged_file_is_kept_and_fetched_again(
    source: Provider, files: ModelFiles
) -> None:
    source.files["org/other/" + NAME] = CONTENT
    place = await files.fetch(MODEL, NAME)
    other = await files.fetch("org/other", NAME)
    assert other.samefile(place)
    place.chmod(0o644)
    with place.open("r+b") as file:
        file.write(b"damaged")
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
    [first] = kept(files.cache_dir)
    assert first.read_bytes()[:7] == b"damaged"
    # The other model has the same damaged content, and finds that out by itself.
    assert (await files.fetch("org/other", NAME)).read_bytes() == CONTENT
    assert other.samefile(place)


def test_size_and_number_are_bounded(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, 1000)

    def take(size: int) -> None:
        file = tmp_path / "file"
        file.write_bytes(bytes(size))
        quarantine.take(file, ModelId(MODEL), FILE, expected="a", found="b")
        assert not file.exists()

    take(1001)
    assert kept(tmp_path) == []
    for _ in range(3):
        take(400)
    assert [file.stat().st_size for file in kept(tmp_path)] == [400, 400]
    for _ in range(MAX_FILES + 3):
        take(1)
    assert len(kept(tmp_path)) == MAX_FILES
    assert len(list((tmp_path / ".quarantine").iterdir())) == 2 * MAX_FILES


def test_it_counts_and_makes_room_first(tmp_path: Path) -> None:
    space = CacheSpace(tmp_path, 1000)
    (tmp_path / "org--a").mkdir()
    (tmp_path / "org--a" / "weights").write_bytes(bytes(500))
    (tmp_path / "bad").write_bytes(bytes(400))
    space.quarantine.take(tmp_path / "bad", ModelId(MODEL), FILE, expected="a", found="b")
    assert space.used_bytes() == 900
    space.make_room(100)
    assert REGISTRY.get_sample_value("model_cache_quarantine_bytes") == 400
    assert REGISTRY.get_sample_value("model_cache_bytes") == 900
    assert REGISTRY.get_sample_value("model_cache_limit_bytes") == 1000
    assert REGISTRY.get_sample_value("model_cache_disk_free_bytes")
    space.make_room(200)
    assert kept(tmp_path) == []
    assert (tmp_path / "org--a" / "weights").exists()


def test_without_a_place_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"x")
    Quarantine(tmp_path, 0).take(tmp_path / "bad", ModelId(MODEL), FILE, expected="a", found="b")
    assert list(tmp_path.iterdir()) == []
